import math

import numpy as np
import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.evaluate.documents import Document
from pretrain.evaluate.measure import as_trained, outcome, pose
from pretrain.evaluate.requests import Score


@pytest.mark.parametrize(
    "settings, expected",
    [
        ((), ("prefix", "[S2S]")),
        (("data.denoisers=60-20-20",), ("prefix", None)),
        (("data.objective=causal",), ("causal", None)),
    ],
)
def test_contexts_are_read_as_in_training(project, settings, expected):
    assert as_trained(project.run(*settings).recipe.data) == expected


def test_what_is_too_long_is_left_out_whole(project):
    tokenizer = tokenizer_of(project.run())
    documents = [Document("Short", ("yes", "no"), 1, "a", 1), Document("Word " * 60 + "end", ("yes", "no"), 0, "b", 2)]
    posed, skipped = pose(documents, tokenizer, None, 24)
    assert [one.number for one in posed] == [1] and skipped == 1
    assert posed[0].sizes == (3, 2) and posed[0].answer_bytes == 3, "with the space that joins it"


def test_metrics_of_scores_worked_out_by_hand(project):
    tokenizer = tokenizer_of(project.run())
    documents = [Document("It is", ("right", "no"), 0, "a", 1), Document("It is", ("right", "no"), 1, "b", 2)]
    posed, _ = pose(documents, tokenizer, None, 64)
    scores = [[Score(-4.0, True, 2), Score(-2.0, False, 1)], [Score(-4.0, False, 2), Score(-3.0, True, 1)]]
    found = outcome(posed, scores, 5, "documents")
    assert found.values["accuracy"].tolist() == [0, 1]
    assert found.values["accuracy_per_byte"].tolist() == [1, 0], "-4 / 5 is above -2 / 2 and -3 / 2"
    assert found.values["greedy"].tolist() == [1, 1] and found.skipped == 5
    assert np.allclose(found.values["bits_per_byte"], [4 / math.log(2) / 6, 3 / math.log(2) / 3])
    assert found.metric("accuracy").mean == 0.5 and found.numbers.tolist() == [1, 2]
    other, _ = pose(documents[:1], tokenizer, "[S2S]", 64)
    assert outcome(other, scores[:1], 0, "documents").requests != found.requests


def test_any_of_several_right_choices_is_right(project):
    document = Document("It is", ("right", "no", "fair"), 2, "a", 1, also=(0,))
    posed, _ = pose([document], tokenizer_of(project.run()), None, 64)
    for best, right in enumerate((1, 0, 1)):
        scores = [[Score(-1.0 if index == best else -9.0, False, 1) for index in range(3)]]
        assert outcome(posed, scores, 0, "documents").values["accuracy"].tolist() == [right]


def test_one_choice_has_no_accuracy(project):
    posed, _ = pose([Document("It", ("is",), 0, "a", 1)], tokenizer_of(project.run()), None, 64)
    assert outcome(posed, [[Score(-1.0, True, 1)]], 0, "documents").values.keys() == {"greedy", "bits_per_byte"}
