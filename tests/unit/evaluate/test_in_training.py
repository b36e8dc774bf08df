import json

import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.engine import build_engine
from pretrain.errors import UserError
from pretrain.evaluate.catalogue import catalogue
from pretrain.evaluate.in_training import TasksInTraining, _within
from pretrain.evaluate.measure import Posed
from pretrain.evaluate.requests import Request
from pretrain.subnetwork import LayerPath
from tests.support.project import BERT
from tests.support.tasks import write_tasks

LONG = ("data.sequence_length=192",)


def asked(project, *settings: str) -> tuple[TasksInTraining, int]:
    """What a run asks, and how many positions that takes."""
    run = project.run(*LONG, *settings)
    found = TasksInTraining.open(run, tokenizer_of(run))
    return found, sum(request.positions for _, posed in found.posed.values() for one in posed for request in one.requests)


@pytest.mark.parametrize("share, every", [(0.1, 10), (0.1, 20), (1.0, 20)])
def test_tasks_take_the_share_of_operations_that_they_may(project, share, every):
    settings = ("eval_tasks=tiny", f"eval_tasks_share={share}", f"eval_tasks_every={every}")
    found, positions = asked(project, *settings)
    allowed = share * 3 * every * 8 * 192  # a step of 8 samples takes three times what scoring them would
    assert 0.5 * allowed < positions <= allowed
    assert list(found.posed) == ["induction_copying", *(f"variable_assignment_{n}" for n in range(3)), "held_out"]
    assert asked(project, *settings)[0].posed.keys() == found.posed.keys()


def test_documents_are_spread_over_the_file():
    posed = [Posed(number, "", (Request((1,), (2, 3)),), 0, (1,), 1) for number in range(100)]
    assert [one.number for one in _within(posed, 20)] == list(range(0, 100, 10))
    assert _within(posed, 10**6) == posed and _within(posed, 1) == []
    uneven = [Posed(n, "", (Request((1,), (2,) * (1 + 50 * (n % 2))),), 0, (1,), 1) for n in range(40)]
    assert 0 < sum(one.requests[0].positions for one in _within(uneven, 200)) <= 200


def test_a_path_is_scored_and_the_quoted_metric_comes_first(project, ranks, tmp_path):
    write_tasks(tmp_path, 30)
    found, _ = asked(project, 'eval_tasks=["hellaswag","nq_open","blimp"]', f"eval_tasks_data={tmp_path}", "eval_tasks_share=1.0")
    assert list(found.posed) == ["hellaswag", "blimp"], "answers that are written are left out"
    engine = build_engine(project.run(*LONG), ranks)
    whole, seconds = found.measure(engine, LayerPath.full(8))
    part, _ = found.measure(engine, LayerPath.full(8).__class__((True,) * 4 + (False,) * 4, (1.0,) * 8))
    assert seconds > 0 and next(iter(whole["hellaswag"])) == "accuracy_per_byte" and next(iter(whole["blimp"])) == "accuracy"
    assert whole["blimp"]["bits_per_byte"].mean != part["blimp"]["bits_per_byte"].mean


@pytest.mark.parametrize(
    "settings, says",
    [
        (("eval_tasks=no_such",), "no tier, file or task is called so"),
        (("eval_tasks=piqa",), "task piqa: piqa.validation (.jsonl or .parquet) is missing"),
        (("eval_tasks=tiny", "eval_tasks_share=0.00001"), "eval_tasks_share is too small for a document"),
        (("eval_tasks=induction_copying", "data.sequence_length=16"), "documents are too long"),
        (("eval_tasks=tiny", *(f"{key}={value}" for key, value in BERT.items())), "a model that fills in masks gives no"),
        (("eval_tasks=nq_open", "eval_tasks_data=DIR"), "nothing of it can be scored in training"),
    ],
)
def test_what_cannot_be_is_one_line(project, tmp_path, settings, says):
    write_tasks(tmp_path, 3)
    with pytest.raises(UserError) as error:
        asked(project, *(setting.replace("DIR", str(tmp_path)) for setting in settings))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_without_tasks_nothing_is_read(project):
    found, positions = asked(project)
    assert found.posed == {} and positions == 0
    assert json.dumps(list(catalogue(None, None))[:1]) == '["induction_copying"]'
