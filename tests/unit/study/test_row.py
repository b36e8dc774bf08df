"""A row says what the run directory holds, each number worked out again in the plainest way."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from statistics import median

import pytest
import torch

from pretrain.checkpoint.directory import RunDirectory
from pretrain.data.loader import open_data
from pretrain.errors import UserError
from pretrain.study.gather import gather
from pretrain.study.plan import read_study
from pretrain.study.row import read_table, table
from pretrain.study.row_of_run import row_of
from tests.support.plain_reader import read_parameter
from tests.support.reference import Reference
from tests.support.runs import train


@pytest.fixture(scope="module")
def raptr(finished):
    """The run directory and the row of one run, and what it was asked for."""
    study, runs, _ = finished
    planned = next(one for one in read_study(study).planned if one.name == "raptr-seed2")
    row = next(row for row in read_table(read_study(study).rows_file) if row.key == planned.key)
    return runs / planned.name / "run", row, planned.run


def lines(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_losses_and_operations(raptr):
    run_dir, row, run = raptr
    steps = [line for line in lines(run_dir) if "loss" in line]
    evaluations = [line for line in lines(run_dir) if "eval_loss" in line]
    assert (row.method, row.seed, row.step, row.steps, row.loss) == ("raptr", 2, 20, 20, evaluations[-1]["eval_loss"])
    assert [at.step for at in row.evaluations] == [10, 20]
    hidden, ffn, sequence, vocabulary, tokens = 32, 48, 64, 640, 8 * 64
    layer = 2 * 4 * hidden**2 + 4 * sequence * hidden + 6 * hidden * ffn + 8 * hidden
    outside = 5 * hidden + 2 * hidden * vocabulary * run.recipe.shape.targets
    for at, line in zip(row.evaluations, evaluations):
        layers = sum(step["active_layers"] for step in steps[: at.step])
        assert at.loss == line["eval_loss"]
        assert at.layer_flops == pytest.approx(3 * tokens * layer * layers, rel=1e-12)
        assert at.model_flops == pytest.approx(3 * tokens * (layer * layers + outside * at.step), rel=1e-12)
        typical = {length: seconds for length, _, seconds in row.step_seconds}
        assert at.seconds == pytest.approx(sum(typical[step["active_layers"]] for step in steps[: at.step]), abs=1e-3)
    assert (
        row.losses["span_3_0.15"] == evaluations[-1]["eval_loss_span_3_0.15"]
        and row.losses["s2s"] == evaluations[-1]["eval_loss_s2s"]
    )
    assert row.training == tuple((step["step"], pytest.approx(step["loss"], abs=1e-5)) for step in steps)
    assert row.of("device") != "unknown" and len(row.of("code")) == 64


def test_boundaries_use_and_times(raptr):
    run_dir, row, run = raptr
    steps = [line for line in lines(run_dir) if "loss" in line]
    first, second = (step.last_step for step in run.method.stages[:2])
    losses = [step["loss"] for step in steps]
    assert [(b.step, b.layers_before, b.layers_after) for b in row.boundaries] == [(first + 1, 4, 6), (second + 1, 6, 8)]
    assert row.boundaries[0].steps == (first, second - first) and row.boundaries[1].steps == (
        second - first,
        20 - second,
    ), "within the stages"
    assert row.boundaries[1].before == pytest.approx(sum(losses[first:second]) / (second - first))
    assert row.boundaries[1].after == pytest.approx(sum(losses[second:]) / len(losses[second:]))
    assert [[column[step] for column in row.layer_use] for step in range(20)] == [
        [pytest.approx(sum(path.active[layer] for path in run.method.paths(step)) / 2) for layer in range(8)]
        for step in range(1, 21)
    ]
    for length, count, seconds in row.step_seconds:
        alike = [step["step_seconds"] for step in steps if step["active_layers"] == length]
        assert count == len(alike)
        assert seconds == pytest.approx(
            median(step["step_seconds"] for step in steps[1:] if step["active_layers"] == length), abs=1e-6
        )
    assert row.typical_seconds == pytest.approx(sum(count * seconds for _, count, seconds in row.step_seconds))


def test_parts_of_the_model_lose_what_the_plain_reference_loses_without_those_layers(raptr):
    run_dir, row, run = raptr
    model = run.recipe.model
    folder = RunDirectory(run_dir).checkpoint(20)
    names = json.loads((folder / "manifest.json").read_text())["parameters"]
    weights = {name: torch.from_numpy(read_parameter(folder, name)) for name in names}
    reference = Reference(weights, model.num_layers, model.num_attention_heads, model.vocab_size, model.norm_epsilon)
    data = open_data(run)
    batches = data.held_out()
    data.close()
    targets = sum(int(batch.targets.sum()) for batch in batches)
    assert set(row.parts) == {*(f"first_{n}" for n in range(1, 8)), "every_other"} == set(row.agreement)
    assert all(0 < share <= 1 for share in row.agreement.values())
    before = row.model_copy(update={"agreement": {}, "sha256": ""})
    content = before.model_dump_json(exclude={"sha256", "agreement"})
    assert before.sealed().sha256 == hashlib.sha256(content.encode()).hexdigest(), "rows of before it keep their checksums"
    kept = {f"first_{n}": range(n) for n in range(1, 8)} | {"every_other": (0, 2, 4, 6, 7)}
    for name, layers in kept.items():
        path = run.parts[name]
        assert [layer for layer in range(8) if path.active[layer]] == list(layers) and set(path.scale) == {1.0}
        with torch.no_grad():
            loss = float(sum(reference.loss_sum(batch, path) for batch in batches)) / targets
        assert row.parts[name] == pytest.approx(loss, abs=1e-4), name
    assert len({round(loss, 4) for loss in row.parts.values()}) > 4, "parts must differ, or the test shows nothing"


def test_a_table_is_read_as_it_was_written_and_a_bad_line_is_named(raptr, tmp_path):
    _, row, _ = raptr
    file = tmp_path / "some.rows.jsonl"
    file.write_text(table([row, row.model_copy(update={"seed": 7})]))
    assert [one.seed for one in read_table(file)] == [2, 7] and read_table(file)[0] == row
    file.write_text(table([row]) + "\n")
    assert read_table(file) == [row]
    file.write_text(table([row]) + '{"size": 1}\n')
    with pytest.raises(UserError, match="line 2 is no row of a study.*remove the line"):
        read_table(file)
    file.write_text(table([row, row]))
    with pytest.raises(UserError, match="line 2 is a second row of raptr, seed 2"):
        read_table(file)


def test_run_directories_are_named_by_what_tells_them_apart(finished, project, tmp_path):
    _, runs, _ = finished
    names = [row.method for row in gather([runs / f"{name}/run" for name in ("full-seed1", "full-seed2", "raptr-seed1")])[0]]
    assert names == ["full", "full", "raptr"]
    names = [row.method for row in gather([runs / f"{name}/run" for name in ("full-seed1", "short-seed1", "raptr-seed1")])[0]]
    assert names == ["full, steps 20", "full, steps 15", "raptr"]
    with pytest.raises(UserError, match="is given twice"):
        gather([runs / "full-seed1/run", runs / "full-seed1"])
    study, _, _ = finished
    rows, baseline = gather([study])
    assert len(rows) == 6 and baseline == "full"
    assert gather([study.with_name("study.rows.jsonl")])[1] == "full", "as the study beside them says"
    done = train(project, tmp_path / "run", "--stop-at", "4")
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match="has no evaluation up to its newest checkpoint"):
        gather([tmp_path / "run"])
    for path, complaint in (
        (tmp_path, "it has no metrics.jsonl"),
        (tmp_path / "none.rows.jsonl", "cannot be read: No such file"),
        (tmp_path / "none", "no such run directory"),
    ):
        with pytest.raises(UserError, match=complaint):
            gather([path])


@pytest.mark.parametrize(
    "damage", [lambda lines: lines[:3] + lines[4:], lambda lines: lines[:3] + lines[2:]], ids=["lost", "twice"]
)
def test_steps_that_are_lost_or_there_twice_are_told(raptr, tmp_path, damage):
    run_dir, _, _ = raptr
    shutil.copytree(run_dir, tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.write_text("".join(damage(metrics.read_text().splitlines(keepends=True))))
    with pytest.raises(UserError, match="does not have every step from 1 to 20 once, in order"):
        row_of(tmp_path / "run", "", "raptr", {})


def test_an_unfinished_run_counts_up_to_its_checkpoint(project, tmp_path):
    assert (
        train(
            project,
            tmp_path / "run",
            "--stop-at",
            "12",
            "--ds.progressive_subnetwork.method",
            "full",
            "--ds.progressive_subnetwork.path-lengths",
            "[]",
        ).returncode
        == 0
    )
    row = row_of(tmp_path / "run", "", "full", {})
    assert (row.step, row.steps, [at.step for at in row.evaluations], row.parts) == (12, 20, [10], {})


def test_a_row_that_was_edited_is_refused(raptr, tmp_path):
    _, row, _ = raptr
    file = tmp_path / "x.rows.jsonl"
    whole = json.loads(table([row]))
    assert len(whole["sha256"]) == 64

    def refused(edit) -> str:
        changed = json.loads(json.dumps(whole))
        edit(changed)
        file.write_text(json.dumps(changed) + "\n")
        with pytest.raises(UserError, match="line 1 is no row of a study: ") as told:
            read_table(file)
        return str(told.value)

    file.write_text(table([row]))
    assert read_table(file)[0].losses == row.losses
    assert "checksum" in refused(lambda it: it["step_seconds"][0].__setitem__(2, 0.5))
    assert 'losses "all" is not that of the last evaluation' in refused(
        lambda it: (it.update(sha256=""), it["losses"].update(all=1.0))
    )
    assert "training losses do not end" in refused(lambda it: it.update(sha256="", training=it["training"][:-1]))
    assert "every step once" in refused(lambda it: it.update(sha256="", step_seconds=it["step_seconds"][:-1]))
    for value in (float("nan"), float("inf"), 1e308):
        refused(
            lambda it, value=value: (
                it.update(sha256=""),
                it["losses"].update(all=value),
                it["evaluations"][-1].update(loss=value),
            )
        )


def test_a_row_of_a_program_without_checksums_is_read(raptr, tmp_path):
    facts = json.loads(table([raptr[1]]))
    del facts["sha256"]
    (tmp_path / "x.rows.jsonl").write_text(json.dumps(facts) + "\n")
    assert read_table(tmp_path / "x.rows.jsonl")[0].losses == raptr[1].losses


def test_a_loss_that_no_row_takes_is_named_with_its_run(raptr, tmp_path):
    shutil.copytree(raptr[0], tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(re.sub(r'"eval_loss": [0-9.]+', '"eval_loss": 1e9', metrics.read_text()))
    with pytest.raises(UserError, match="run: cannot be compared: loss: Input should be less than 1000000"):
        row_of(tmp_path / "run", "", "raptr", {})


def test_a_study_whose_baseline_has_no_row_yet_is_reported_on(finished, tmp_path):
    """Nobody gave --baseline, so nothing is said of it."""
    study = tmp_path / "study.yaml"
    for file in finished[0].parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    rows = tmp_path / "study.rows.jsonl"
    rows.write_text("".join(line for line in rows.read_text().splitlines(keepends=True) if '"method":"full"' not in line))
    words = [sys.executable, "-m", "pretrain", "report", str(study), "--out", str(tmp_path / "page")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "no run of the study's baseline, full, is done yet" in done.stdout, done.stderr
