"""A run whose learning rate stays at its top may branch off for a decay at any of its checkpoints."""

import re
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest

from pretrain.cli.arguments import with_decay
from pretrain.errors import UserError
from tests.support.runs import essence, rows, train

SCHEDULE = "{type: WarmupStableDecay, params: {warmup_num_steps: 4, warmup_type: linear, decay_num_steps: 6, decay_type: 1-sqrt}}"
PATHS = '{method: raptr, path_lengths: "4-6-8", balance_groups: 2, full_model_last_steps: decay}'


@pytest.fixture(scope="module")
def stable(project, tmp_path_factory):
    """Sixteen steps of twenty, of which the last six decay."""
    run_dir = tmp_path_factory.mktemp("stable") / "run"
    words = ("--ds.scheduler", SCHEDULE, "--ds.progressive_subnetwork", PATHS, "--keep-every", "5", "--stop-at", "16")
    assert train(project, run_dir, *words).returncode == 0
    return run_dir


def steps_of(run_dir) -> dict[int, dict]:
    return {row["step"]: row for row in essence(rows(run_dir)) if "loss" in row}


@pytest.mark.long
def test_a_decay_from_a_checkpoint_is_that_of_a_run_of_that_length(project, tmp_path):
    """Until the decay nothing depends on how long a run is, so that both are the same bit for bit; also when interrupted."""
    full = ("--ds.scheduler", SCHEDULE, "--ds.progressive_subnetwork", "{method: full}")
    long, branch, straight = (tmp_path / name for name in ("long", "branch", "straight"))
    assert train(project, long, *full, "--stop-at", "10").returncode == 0
    words = (*full, "--resume", str(long / "checkpoints/step_00000010"), "--decay-steps", "5")
    for stop in (("--stop-at", "13"), ()):
        done = train(project, branch, *words, *stop)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(long, ignore_errors=True)  # as a run prunes its checkpoints: the branch has its own by now
    shorter = SCHEDULE.replace("decay_num_steps: 6", "decay_num_steps: 5")
    done = train(project, straight, *("--ds.scheduler", shorter), *full[2:], "--steps", "15")
    assert done.returncode == 0, done.stderr
    ours, theirs = steps_of(branch), steps_of(straight)
    planned = subprocess.run(
        [sys.executable, "-m", "pretrain", "plan", str(project.recipe), "--ds-config", str(project.ds), "--ds.scheduler", shorter,
         *full[2:], "--steps", "15"], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    drawn = re.findall(r"step ([\d,]+) *│ *([\d.e-]+) *│", planned.stdout.partition("WarmupStableDecay")[2])
    assert [int(step) for step, _ in drawn] == [1, 4, 11, 15], planned
    assert all(f"{theirs[int(step)]['lr']:.3g}" == rate for step, rate in drawn), "plan's rates are those that the run logged"
    assert list(ours) == list(range(11, 16)) and ours == {step: theirs[step] for step in ours}
    assert [row["lr"] for row in ours.values()] == pytest.approx([1e-3 * (1 - (n / 5) ** 0.5) for n in range(5)])


def test_the_decay_runs_all_layers_where_it_is_asked_to(project, stable, tmp_path):
    found = {step: row["active_layers"] for step, row in steps_of(stable).items()}
    assert [found[step] for step in range(15, 17)] == [8.0, 8.0] and {found[step] for step in range(1, 5)} == {4.0}
    words = ("--ds.scheduler", SCHEDULE, "--ds.progressive_subnetwork", PATHS, "--decay-steps", "3")
    done = train(project, tmp_path / "branch", *words, "--resume", str(stable / "checkpoints/step_00000005"))
    assert done.returncode == 0, done.stderr
    branch = steps_of(tmp_path / "branch")
    assert list(branch) == [6, 7, 8] and {row["active_layers"] for row in branch.values()} == {8.0}


def test_a_decay_that_cannot_be_is_one_line(project, stable, tmp_path):
    at = {step: str(stable / f"checkpoints/step_{step:08d}") for step in (5, 16)}
    for steps, checkpoint, pairs, says in (
        (3, "auto", [], "name the checkpoint at which the decay begins"),
        (0, at[5], [], "--decay-steps 0: at least 1"),
        (3, at[5], [("--steps", "9")], "leave out --steps"),
        (3, at[5], [], "a decay is a run of its own, which ends; give it another --run-dir"),
        (3, at[16], [], "step 16 is not of the stable part of its run, which is 4 to 14"),
        (3, str(tmp_path), [], "manifest"),
    ):
        with pytest.raises(UserError, match=says):
            own = stable if "run of its own" in says else None
            with_decay(Namespace(decay_steps=steps, resume=checkpoint, run_dir=own), pairs)
    assert train(project, tmp_path / "cosine", "--stop-at", "5").returncode == 0
    done = train(project, tmp_path / "b", "--decay-steps", "3", "--resume", str(tmp_path / "cosine/checkpoints/step_00000005"))
    assert done.returncode == 2 and "whose schedule is not WarmupStableDecay" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
