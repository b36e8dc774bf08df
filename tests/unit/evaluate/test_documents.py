import math

import numpy as np
import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.errors import UserError
from pretrain.evaluate.documents import Document, bits_per_byte, chosen, mean_of, requests_of
from pretrain.evaluate.requests import Score


@pytest.fixture(scope="module")
def tokenizer(project):
    return tokenizer_of(project.run())


@pytest.mark.parametrize("context", ["The answer is", "First line\nsecond: no\nthird:", "Zwölf 😀"])
@pytest.mark.parametrize("choice", [" yes", " no, never", "\n", " <extra_id_0> as text"])
def test_tokens_are_those_of_the_whole_text(tokenizer, context, choice):
    (request,) = requests_of(Document(context, (choice,), 0, ""), tokenizer)
    assert list(request.context + request.continuation) == tokenizer.encode([context + choice])[0].tolist()
    assert list(request.context) == tokenizer.encode([context])[0].tolist()
    (with_mode,) = requests_of(Document(context, (choice,), 0, ""), tokenizer, "[S2S]")
    assert with_mode.context == (tokenizer.id("[S2S]"), *request.context) and with_mode.continuation == request.continuation


def test_a_choice_that_melts_into_the_context_is_refused(tokenizer):
    """Where a token spans both, nobody can say where the context ends."""
    word = max((tokenizer.processor.id_to_piece(n) for n in range(tokenizer.vocab_size)), key=len).lstrip("\u2581")
    with pytest.raises(UserError, match="spans the end of the context"):
        requests_of(Document(f"It is {word[:-1]}", (word[-1],), 0, ""), tokenizer)
    with pytest.raises(ValueError, match="a context of one token at least"):
        requests_of(Document("", (" yes",), 0, ""), tokenizer)


def test_choices_are_ranked_and_the_right_one_is_measured():
    document = Document("", (" a", " a long one"), 1, "")
    scores = [Score(-2.0, False, 1), Score(-4.0, False, 3)]
    assert chosen(scores) == 0
    assert bits_per_byte(scores, document) == pytest.approx(4 / math.log(2) / 11)


def test_errors_are_those_of_independent_documents_and_of_whole_clusters():
    values = np.random.default_rng(1).normal(size=60).tolist()
    apart = mean_of(values, [Document("", (), 0, str(n)) for n in range(60)])
    assert apart.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(60)) and apart.clusters == 60
    twice = mean_of([v for v in values for _ in range(2)], [Document("", (), 0, str(n // 2)) for n in range(120)])
    assert twice.error == pytest.approx(apart.error) and twice.mean == pytest.approx(apart.mean) and twice.documents == 120
    assert mean_of([1.0, 0.0], [Document("", (), 0, "")] * 2).error is None
    same = mean_of([0.0] * 9, [Document("", (), 0, str(n)) for n in range(9)])
    assert same.mean == 0 and same.error == 0, "a paired difference of a run with itself"
