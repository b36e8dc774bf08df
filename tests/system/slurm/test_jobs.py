"""Jobs on a real SLURM of three nodes: to the end, through signals, and through the loss of nodes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.manifest import problem_of
from pretrain.study.row import read_table
from tests.support.launch import pretrain
from tests.support.project import copy_code
from tests.support.studies import compare_command, write_study
from tests.system.slurm.conftest import PROJECT, SMALL, Job

pytestmark = [pytest.mark.slurm, pytest.mark.dist]
TP2_PP2 = ("--parallel.tensor", "2", "--parallel.pipeline", "2")
TP2 = ("--parallel.tensor", "2")
TWO = ("--parallel.pipeline", "2")
ONE_EACH = ("--nodes=2", "--ntasks-per-node=1")
TOLERANCE = 1e-4


def rows(run_dir) -> list[dict]:
    return [row for row in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.fixture(scope="module")
def unbroken(project, tmp_path_factory):
    """A run of torchrun that nothing disturbs, on this machine alone."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    process = pretrain(project, run_dir, 2, "--parallel.pipeline", "2", "--device", "cpu", "--steps", "40")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return rows(run_dir)


def require_same(run_dir, unbroken) -> None:
    found = rows(run_dir)
    assert [row["step"] for row in found] == [row["step"] for row in unbroken], "every step stands once"
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(found, unbroken)) < TOLERANCE


@pytest.mark.parametrize(
    "layout", [TP2_PP2, pytest.param(TP2, marks=pytest.mark.slow)], ids=["TP2 x PP2", "TP2 x DP2 with ZeRO-1"]
)
def test_two_nodes_train_to_the_end(submit, unbroken, layout):
    job = submit(*layout, "--steps", "40", name="a run's directory")
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    story = (job.run_dir / "job.log").read_text()
    assert "start 0: 4 tasks on n[1-2], from the beginning" in story and "finished at step 40" in story
    assert "4 processes on 2 nodes, started by srun" in job.log.read_text()


def require_kept(job, before: bytes) -> None:
    """Rows up to the checkpoint from which the run has gone on last are, byte for byte, those of before."""
    step = int(re.findall(r"from step (\d+)$", (job.run_dir / "job.log").read_text(), re.MULTILINE)[-1])
    kept = [row for row in before.splitlines() if json.loads(row)["step"] <= step]
    assert kept and (job.run_dir / "metrics.jsonl").read_bytes().splitlines()[: len(kept)] == kept


def own_copy(tmp_path) -> Path:
    """Copy the scripts and the code, to be edited."""
    home = tmp_path / "project"
    copy_code(home)
    return home


@pytest.mark.long
def test_before_the_time_limit_it_saves_and_is_queued_again_with_the_code_that_was_submitted(submit, unbroken, tmp_path):
    home = own_copy(tmp_path)
    job = submit(*TWO, "--steps", "40", "--save-every", "100", sbatch=ONE_EACH, home=home)
    job.wait_for_step(15)
    (home / "pretrain" / "train.py").write_text("raise SystemExit('edited after the submission')")
    before = (job.run_dir / "metrics.jsonl").read_bytes()
    job.signal("USR1")
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    require_kept(job, before)
    story = (job.run_dir / "job.log").read_text()
    assert "before the time limit; queued again" in story and "start 1: 2 tasks" in story and "finished at step 40" in story
    resumed = re.search(r"start 1: 2 tasks on \S+, from step (\d+)", story)
    assert resumed and 15 <= int(resumed[1]) < 40, "not from the beginning"


@pytest.mark.long
def test_a_node_that_dies_is_replaced_by_another(submit, cluster, unbroken):
    job = submit(*TWO, "--steps", "40", "--save-every", "5", sbatch=ONE_EACH)
    job.wait_for_step(12)
    before = (job.run_dir / "metrics.jsonl").read_bytes()
    node = job.nodes()[1]
    cluster.shell(f"node_crash {node}")
    try:
        assert job.wait() == "COMPLETED", job.story()
    finally:
        cluster.shell(f"node_start {node} >/dev/null 2>&1")
    require_same(job.run_dir, unbroken)
    require_kept(job, before)
    assert node not in job.nodes(), "it went on without that node"


def test_a_misspelt_key_ends_the_job_at_once_and_for_good(submit):
    started = time.time()
    job = submit("--ds.zero_optimisation.stage", "1", sbatch=ONE_EACH)
    assert job.wait(seconds=60) == "FAILED" and time.time() - started < 30
    assert 'did you mean "--ds.zero_optimization"?' in job.log.read_text()
    time.sleep(1)
    assert job.wait() == "FAILED" and job.facts()["Restarts"] == "0", "not queued again"


def test_by_hand_a_misspelt_key_is_refused_before_anything_is_queued(cluster, project, tmp_path):
    words = ["--recipe", project.recipe, "--ds-config", project.ds, "--run-dir", tmp_path / "run"]
    done = cluster.run("bash", PROJECT / "slurm" / "pretrain_ul2.sh", *words, "--stepz", "3", cwd=tmp_path)
    assert done.returncode == 2 and 'unknown option "--stepz"; did you mean "--steps"?' in done.stderr
    assert "Submitted" not in done.stdout and not (tmp_path / "run").exists()


@pytest.mark.long
def test_cancelled_it_saves_and_is_not_queued_again(submit, unbroken):
    job = submit(*TWO, "--steps", "2000", "--save-every", "5", sbatch=ONE_EACH)
    job.wait_for_step(12)
    job.signal("TERM")
    assert job.wait() in ("FAILED", "CANCELLED"), job.story()
    assert job.facts()["Restarts"] == "0" and "asked to end (SIGTERM)" in (job.run_dir / "job.log").read_text()
    newest = RunDirectory(job.run_dir).steps_saved()[-1]
    assert problem_of(newest) is None and int(newest.name[5:]) >= 12


def test_data_is_prepared_on_two_nodes_as_by_one_process(submit, cluster, home, tmp_path):
    from tokenizer.encode import encode
    from tokenizer.load import load_tokenizer

    words = ["--input", home / "train.jsonl", "--tokenizer", home / "tokenizer", "--out", tmp_path / "two" / "x"]
    small = ["--nodes=2", "--ntasks-per-node=2", "--time=10:00"]
    done = cluster.run("sbatch", "--parsable", *small, PROJECT / "slurm" / "prepare_data.sh", *words, cwd=tmp_path)
    number = done.stdout.strip()
    assert cluster.wait(number) == "COMPLETED", (tmp_path / f"prepare-data-{number}.out").read_text()
    encode(str(home / "train.jsonl"), load_tokenizer(home / "tokenizer"), tmp_path / "one" / "x")
    for end in (".bin", ".idx", ".json"):
        assert (tmp_path / "two" / f"x{end}").read_bytes() == (tmp_path / "one" / f"x{end}").read_bytes()


@pytest.mark.long
def test_by_hand_from_an_edited_script_it_is_checked_and_submitted(cluster, project, unbroken, tmp_path):
    """As a user does it: a few lines at the top are edited. Nothing of the environment goes along."""
    home = own_copy(tmp_path)
    script = home / "slurm" / "pretrain_ul2.sh"
    edits = {
        "nodes=4": "nodes=2",
        "ntasks-per-node=8": "ntasks-per-node=1",
        "#SBATCH --gpus-per-node=8": "##",
        "cpus-per-task=8": "cpus-per-task=1",
        "time=24:00:00": "time=10:00",
    }
    edits |= {"RECIPE=ul2_1.6b": f'RECIPE="{project.recipe}"', "# PYTHON=/path/to/python": f"PYTHON={sys.executable}"}
    text = script.read_text()
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    script.write_text(text)
    words = ["--ds-config", project.ds, "--run-dir", "its run", *TWO, "--device", "cpu", "--steps", "40"]
    environment = {**cluster.environment, "SBATCH_EXPORT": "NONE"}
    environment.pop("PYTHON")
    done = subprocess.run(["bash", script, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    number = re.search(r"Submitted batch job (\d+)", done.stdout)[1]
    job = Job(cluster, number, tmp_path / "its run", tmp_path / f"ul2-{number}.out")
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)


@pytest.mark.slow
def test_a_node_that_is_not_fit_is_left_out(submit, cluster, unbroken, tmp_path):
    """Its mount of the run directory is read-only."""
    if not (cluster.root / "ns").exists():
        pytest.skip("nodes have no mounts of their own here")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    slurmd = (cluster.root / "run" / "slurmd.n2.pid").read_text().strip()
    there = f"nsenter --target {slurmd} --mount"
    cluster.shell(f"{there} mount --bind '{run_dir}' '{run_dir}' && {there} mount -o remount,bind,ro '{run_dir}'")
    try:
        job = submit(*TWO, "--steps", "40", sbatch=ONE_EACH, run_dir=run_dir)
        assert job.wait() == "COMPLETED", job.story()
    finally:
        cluster.shell(f"{there} umount '{run_dir}'")
    require_same(run_dir, unbroken)
    story = (run_dir / "job.log").read_text()
    assert (
        "tasks on n[1-2]" in story
        and f"n2: cannot write to {run_dir}" in story
        and "queued again from step 0, without n2" in story
    )
    assert (run_dir / "bad_nodes").read_text() == "n2\n" and job.nodes() == ["n1", "n3"] and job.facts()["ExcNodeList"] == "n2"


@pytest.mark.slow
def test_where_slurm_does_not_queue_it_again_the_job_says_so(submit, unbroken):
    job = submit(*TWO, "--steps", "40", "--save-every", "100", sbatch=(*ONE_EACH, "--no-requeue"))
    job.wait_for_step(15)
    job.signal("USR1")
    assert job.wait() == "FAILED", job.story()
    assert (job.run_dir / "job.log").read_text().endswith("SLURM does not queue it again; the same command resumes\n")
    again = submit(*TWO, "--steps", "40", "--save-every", "100", sbatch=(*ONE_EACH, "--no-requeue"))
    assert again.wait() == "COMPLETED", again.story()
    require_same(again.run_dir, unbroken)


@pytest.mark.slow
def test_within_salloc_the_script_runs_where_it_is(cluster, project, unbroken, tmp_path):
    words = [
        "--recipe",
        project.recipe,
        "--ds-config",
        project.ds,
        "--run-dir",
        tmp_path / "run",
        *TWO,
        "--device",
        "cpu",
        "--steps",
        "40",
    ]
    done = cluster.run("salloc", *SMALL, *ONE_EACH, "bash", PROJECT / "slurm" / "pretrain_ul2.sh", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    require_same(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_told_to_save_while_it_starts_it_saves_once_it_trains(submit, unbroken):
    job = submit(*TWO, "--steps", "40", "--save-every", "100", sbatch=ONE_EACH)
    deadline = time.time() + 60
    while "tasks on" not in (job.log.read_text() if job.log.exists() else ""):
        assert time.time() < deadline, job.story()
        time.sleep(0.05)
    time.sleep(2)  # srun has started by now, and Python imports
    assert not (job.run_dir / "metrics.jsonl").exists()
    job.signal("USR1")
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    assert re.search(r"saved at step \d+ before the time limit; queued again", (job.run_dir / "job.log").read_text()), job.story()


@pytest.mark.slow
def test_an_earlier_start_that_has_not_let_go_of_the_run_directory_is_waited_for(submit, unbroken):
    job = submit(*TWO, "--steps", "40", sbatch=ONE_EACH)
    job.wait_for_step(12)
    holder = subprocess.Popen(["flock", job.run_dir / ".lock", "sleep", "30"])  # gets it when the first start ends
    job.signal("USR1")
    assert job.wait() == "COMPLETED", job.story()
    assert holder.wait(60) == 0
    require_same(job.run_dir, unbroken)


@pytest.mark.slow
def test_a_second_job_leaves_the_first_ones_run_alone(submit, unbroken):
    first = submit(*TWO, "--steps", "40", sbatch=("--nodes=1", "--nodelist=n1"))
    first.wait_for_step(2)
    code = (first.run_dir / "code").stat().st_ino
    second = submit(*TWO, "--steps", "40", sbatch=("--nodes=1", "--nodelist=n2"))
    assert second.wait() == "FAILED" and "another process trains in it" in second.log.read_text()
    assert (first.run_dir / "code").stat().st_ino == code
    assert first.wait() == "COMPLETED", first.story()
    require_same(first.run_dir, unbroken)


@pytest.mark.slow
def test_tasks_of_an_array_are_queued_again_one_by_one(submit, cluster, unbroken, tmp_path):
    job = submit(*TWO, "--steps", "40", "--save-every", "100", name="run %a", sbatch=("--nodes=1", "--array=1-2"))
    parts = [Job(cluster, f"{job.number}_{n}", tmp_path / f"run {n}", tmp_path / f"ul2-{job.number}_{n}.out") for n in (1, 2)]
    parts[0].wait_for_step(10)
    parts[1].wait_for_step(10)
    parts[0].signal("USR1")
    for part in parts:
        assert part.wait() == "COMPLETED", part.story()
        require_same(part.run_dir, unbroken)
    assert [part.facts()["Restarts"] for part in parts] == ["1", "0"]


@pytest.mark.long
def test_a_study_is_one_array_and_its_rows_are_kept_by_the_same_command(cluster, project, tmp_path):
    study = write_study(project, tmp_path / "study", seeds=[1])
    words = [*compare_command(study, tmp_path / "runs"), "--slurm", " ".join([*SMALL, "--nodes=1"])]
    first = cluster.run(*words, cwd=PROJECT)
    assert first.returncode == 0 and "3 runs submitted as job " in first.stdout, first.stdout + first.stderr
    job = first.stdout.partition("submitted as job ")[2].split(";")[0]
    again = cluster.run(*words, cwd=PROJECT)
    assert again.returncode == 0 and again.stdout.count(f"in the queue as {job}_") == 3 and "submitted" not in again.stdout, (
        again.stdout + again.stderr
    )
    folders = [tmp_path / "runs" / f"{name}-seed1" for name in ("full", "short", "raptr")]
    for number, folder in enumerate(folders):
        task = Job(cluster, f"{job}_{number}", folder / "run", folder / "log.txt")
        assert task.wait() == "COMPLETED", task.story()
    done = cluster.run(*words, cwd=PROJECT)
    assert done.returncode == 0 and "3 of 3 runs are done" in done.stdout and "submitted" not in done.stdout, (
        done.stdout + done.stderr
    )
    kept = read_table(study.with_name("study.rows.jsonl"))
    assert [(row.method, row.steps, row.layout["data"]) for row in kept] == [("full", 20, 2), ("short", 15, 2), ("raptr", 20, 2)]
    assert {row.of("commit") for row in kept} == {(tmp_path / "runs/code/COMMIT").read_text().strip()}


@pytest.mark.slow
def test_cancelled_with_scancel_alone_a_good_checkpoint_stays(submit, cluster):
    job = submit(*TWO, "--steps", "2000", "--save-every", "5", sbatch=ONE_EACH)
    job.wait_for_step(12)
    cluster.run("scancel", job.number)
    assert job.wait() == "CANCELLED", job.story()
    newest = RunDirectory(job.run_dir).steps_saved()[-1]
    assert problem_of(newest) is None and int(newest.name[5:]) >= 5
    time.sleep(8)
    assert job.wait() == "CANCELLED" and job.facts()["Restarts"] == "0", "not queued again"


@pytest.mark.slow
def test_preempted_it_is_queued_again_by_slurm_and_goes_on(submit, cluster, unbroken, tmp_path):
    job = submit(*TWO, "--steps", "40", "--save-every", "5", sbatch=("--ntasks-per-node=1", "--exclusive", "--nodes=2"))
    job.wait_for_step(12)
    before = (job.run_dir / "metrics.jsonl").read_bytes()
    urgent = cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--time=1:00", "--wrap", "sleep 5", cwd=tmp_path
    ).stdout.strip()
    assert cluster.wait(urgent, "RUNNING", "COMPLETED", seconds=60)
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    require_kept(job, before)
    assert job.facts()["Restarts"] == "1"


@pytest.mark.slow
def test_a_job_goes_on_on_one_node_with_another_layout(submit, unbroken):
    first = submit(*TWO, "--steps", "40", "--stop-at", "15", sbatch=ONE_EACH)
    assert first.wait() == "COMPLETED", first.story()
    second = submit("--parallel.tensor", "2", "--steps", "40", sbatch=("--nodes=1",))
    assert second.wait() == "COMPLETED", second.story()
    require_same(second.run_dir, unbroken)
    assert "written on another layout" in second.log.read_text()


@pytest.mark.slow
def test_a_rank_that_hangs_is_found_and_the_job_goes_on(submit, cluster, unbroken):
    job = submit(*TWO, "--steps", "40", "--save-every", "5", "--watchdog-seconds", "20", sbatch=ONE_EACH)
    job.wait_for_step(12)
    victim = next(
        p
        for p in psutil.process_iter()
        if str(job.run_dir) in p.cmdline()
        and "train" in p.cmdline()
        and "srun" not in p.cmdline()[0]
        and p.environ().get("SLURM_PROCID") == "1"
    )
    victim.send_signal(signal.SIGSTOP)
    stopped = time.time()
    stack = job.run_dir / "stacks" / f"job_{job.number}_start_0_rank_00000.txt"
    while not stack.exists():
        assert time.time() - stopped < 60, job.story()
        time.sleep(0.1)
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    assert "engine.py" in stack.read_text() and "no step for 20 s" in (job.run_dir / "job.log").read_text()


@pytest.mark.slow
def test_a_step_that_never_ends_because_its_slurmstepd_died_is_given_up(submit, unbroken, tmp_path):
    home = own_copy(tmp_path)
    common = home / "slurm" / "common.sh"
    common.write_text(common.read_text().replace("ENDED_SECONDS=180", "ENDED_SECONDS=10"))
    job = submit(*TWO, "--steps", "40", "--save-every", "5", sbatch=ONE_EACH, home=home)
    job.wait_for_step(12)
    stepd = next(p for p in psutil.process_iter() if f"slurmstepd: [{job.number}.0]" in " ".join(p.cmdline()))
    stepd.kill()
    assert job.wait() == "COMPLETED", job.story()
    require_same(job.run_dir, unbroken)
    assert "srun has not ended 10 s after a task has; it is killed" in (job.run_dir / "job.log").read_text(), job.story()


@pytest.mark.slow
def test_two_jobs_on_one_node_do_not_meet(submit, unbroken):
    jobs = [submit(*TWO, "--steps", "40", name=name, sbatch=("--nodes=1", "--nodelist=n1")) for name in ("a", "b")]
    for job in jobs:
        assert job.wait() == "COMPLETED", job.story()
        require_same(job.run_dir, unbroken)


@pytest.mark.slow
def test_failures_without_progress_end_the_job_with_the_reason(submit):
    job = submit(
        *TWO, "--steps", "40", "--ds.optimizer.params.lr", "1e30", "--ds.scheduler.params.warmup_num_steps", "1", sbatch=ONE_EACH
    )
    assert job.wait(seconds=300) == "FAILED", job.story()
    story = (job.run_dir / "job.log").read_text()
    assert story.count("queued again") == 2 and "3 starts in a row saved nothing newer than step 0" in story


@pytest.mark.slow
def test_acceptance(cluster, tmp_path):
    """What anybody may run on a cluster of their own."""
    words = ["--out", "its results", "--device", "cpu", "--rounds", "1"]
    done = cluster.run(
        "sbatch", "--parsable", *SMALL, *ONE_EACH, "--time=20:00", PROJECT / "slurm" / "acceptance.sh", *words, cwd=tmp_path
    )
    state = cluster.wait(number := done.stdout.strip(), seconds=600)
    told = (tmp_path / f"acceptance-{number}.out").read_text()
    found = json.loads((tmp_path / "its results" / "acceptance.json").read_text())
    good = {part["name"]: part["good"] for part in found["parts"]}
    assert list(good) == ["collectives", "parity", "kill and resume", "path speed", "one gpu"]
    assert all(good[name] for name in good if name != "path speed"), told  # one round beside other tests is no measure of speed
    assert found["parts"][3]["facts"]["ratios"].keys() == {"DP2", "PP2"}, told
    assert state == ("COMPLETED" if all(good.values()) else "FAILED") and found["line"] in told
    assert found["parts"][1]["facts"].keys() == {"DP2", "TP2", "PP2"}
