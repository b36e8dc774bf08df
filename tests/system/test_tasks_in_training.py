"""Tasks are scored while a run trains, once a step, and change nothing of it."""

import json

import pytest

from tests.support.launch import torchrun
from tests.support.runs import command, train

SETTINGS = ("--data.sequence_length", "96", "--eval_parts", "true")
TASKS = ("--eval_tasks", '["induction_copying", "held_out"]', "--eval_tasks_every", "5", "--eval_tasks_share", "0.5")


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.dist
def test_tasks_change_nothing_and_their_rows_are_there_once(project, tmp_path):
    assert train(project, tmp_path / "plain", *SETTINGS).returncode == 0
    done = train(project, tmp_path / "tasks", *SETTINGS, *TASKS, "--stop-at", "10")
    assert done.returncode == 0, done.stderr
    assert "step 5/20  tasks in" in done.stdout and "(accuracy)" in done.stdout and "(bits per byte)" in done.stdout
    file = tmp_path / "tasks/metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert "task_seconds" in lines[-1] and '"step": 10' in lines[-1]
    file.write_text("".join(lines[:-1]))  # as if killed between the loss on held-out text and the tasks
    assert train(project, tmp_path / "tasks", *SETTINGS, *TASKS).returncode == 0
    plain, with_tasks = rows(tmp_path / "plain"), rows(tmp_path / "tasks")
    scored = [row for row in with_tasks if "task_seconds" in row]
    assert [row["step"] for row in scored] == [5, 10, 15, 20]
    assert all(0 <= row["task_induction_copying_accuracy"] <= 1 and row["task_held_out_bits_per_byte"] > 1 for row in scored)
    others = [row for row in with_tasks if "task_seconds" not in row]
    assert [row["step"] for row in others] == [row["step"] for row in plain]
    for name in ("loss", "eval_loss", "grad_norm", "eval_loss_first_1"):
        assert [row.get(name) for row in others] == [row.get(name) for row in plain], name
    assert (tmp_path / "tasks/report/index.html").exists()


@pytest.mark.dist
@pytest.mark.long
def test_a_growing_model_on_a_pipeline_is_scored_with_the_layers_it_has(project, tmp_path):
    growing = ("--ds.progressive_subnetwork", '{"method": "stacking", "path_lengths": "4-8"}', "--parallel.pipeline", "2")
    words = command(project, tmp_path / "run", "--data.sequence_length", "96", *TASKS, *growing)[2:]
    process = torchrun(2, *words)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert [row["step"] for row in rows(tmp_path / "run") if "task_seconds" in row] == [5, 10, 15, 20]
