"""Every task, put to a model that has learned nothing."""

from pathlib import Path

import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.engine import build_engine
from pretrain.evaluate.ask import ask
from pretrain.evaluate.catalogue import catalogue, choose
from pretrain.evaluate.load import Loaded
from pretrain.evaluate.measure import Asking
from tests.support.tasks import write_tasks

TASKS = [name for name, task in catalogue(None, None).items() if name != "held_out"]
LENGTH = 256
DOCUMENTS = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, DOCUMENTS)
    return folder


@pytest.fixture(scope="module")
def model(project, ranks) -> Loaded:
    run = project.run(f"data.sequence_length={LENGTH}")
    return Loaded(run, Path("run/step"), 0, build_engine(run, ranks), tokenizer_of(run))


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_has_learned_nothing_is_at_chance(model, ranks, folder, name):
    (task,) = choose([name], catalogue(model.run, folder), folder)
    limit = 6 if task.metric in ("exact_match", "f1") else DOCUMENTS
    row, outcome = ask(model, task, Asking(limit, 1, 0, "prefix", "[S2S]"), ranks)
    found = row.metrics[task.metric]
    assert row.documents == limit and row.skipped == 0 and len(outcome.numbers) == limit
    chance = 1 / 5 if name == "record" else task.chance  # of the five names that are made for it
    assert abs(found.mean - chance) <= 3 * found.error, (found, chance)
    assert row.data is None or len(row.data.split()[1]) == 64


@pytest.mark.parametrize("name", ["induction_copying", "boolq", "nq_open"])
def test_what_is_too_long_is_counted(model, ranks, folder, name):
    (task,) = choose([name], catalogue(model.run, folder), folder)
    row, outcome = ask(model, task, Asking(5, 1, 60, "prefix", "[S2S]"), ranks)
    assert outcome is None and row.metrics == {} and (row.documents, row.skipped) == (0, 5)


def test_held_out_text_is_a_task(model, ranks):
    (task,) = choose(["held_out"], catalogue(model.run, None), None)
    row, _ = ask(model, task, Asking(5, 1, 0, "prefix", "[S2S]"), ranks)
    assert row.chance is None and row.metrics["bits_per_byte"].mean > 1 and row.documents == 5
