import math

import numpy as np
import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.errors import UserError
from pretrain.evaluate.documents import Document, half_width, likeliest, mean_of, requests_of
from pretrain.evaluate.requests import Score


@pytest.fixture(scope="module")
def tokenizer(project):
    return tokenizer_of(project.run())


@pytest.mark.parametrize("context", ["The answer is", "First line\nsecond: no\nthird:", "Zwölf 😀"])
@pytest.mark.parametrize("choice", [" yes", " no, never", "\n", " <extra_id_0> as text"])
def test_tokens_are_those_of_the_whole_text(tokenizer, context, choice):
    document = Document(context, (choice,), 0, "", between="")
    (request,) = requests_of(document, tokenizer)
    assert list(request.context + request.continuation) == tokenizer.encode([context + choice])[0].tolist()
    assert list(request.context) == tokenizer.encode([context])[0].tolist()
    (with_mode,) = requests_of(document, tokenizer, "[S2S]")
    assert with_mode.context == (tokenizer.id("[S2S]"), *request.context) and with_mode.continuation == request.continuation


def test_a_choice_that_melts_into_the_context_is_refused(tokenizer):
    """Where a token spans both, nobody can say where the context ends."""
    word = max((tokenizer.processor.id_to_piece(n) for n in range(tokenizer.vocab_size)), key=len).lstrip("\u2581")
    with pytest.raises(UserError, match="document 3: .*spans the end of the context"):
        requests_of(Document(f"It is {word[:-1]}", (word[-1],), 0, "", 3, between=""), tokenizer)


def test_space_at_the_end_of_a_context_belongs_to_what_follows(tokenizer):
    assert Document("It is:\n", ("so", "no"), 0, "a", between="").pairs == [("It is:", "\nso"), ("It is:", "\nno")]
    document = Document("It is:\n", ("so",), 0, "a", between="")
    assert document.answered == "It is:\nso" and requests_of(document, tokenizer) == requests_of(
        Document("It is:", ("\nso",), 0, "a", between=""), tokenizer
    )


def test_where_nothing_is_before_a_choice_its_first_token_is_read(tokenizer):
    document = Document("", ("It is so.", "It are so."), 0, "", between="")
    for request, choice in zip(requests_of(document, tokenizer), document.choices, strict=True):
        first, *others = tokenizer.encode([choice])[0].tolist()
        assert request.context == (first,) and list(request.continuation) == others
    for request, choice in zip(requests_of(document, tokenizer, "[S2S]"), document.choices, strict=True):
        assert request.context == (tokenizer.id("[S2S]"),)
        assert list(request.continuation) == tokenizer.encode([choice])[0].tolist(), "after a mode token all are scored"
    with pytest.raises(UserError, match="no token is left to score"):
        requests_of(Document("", ("",), 0, "", between=""), tokenizer)


def test_contexts_of_their_own_for_each_choice(tokenizer):
    document = Document(("Ann said Ann", "Ann said Eve"), ("left.", "left."), 1, "").after("Read: ")
    first, second = requests_of(document, tokenizer)
    assert document.answered == "Read: Ann said Eve left." and first.continuation == second.continuation
    assert list(second.context) == tokenizer.encode(["Read: Ann said Eve"])[0].tolist() != list(first.context)


def test_choices_are_ranked_by_themselves_and_by_their_size():
    scores = [Score(-2.0, False, 1), Score(-4.0, False, 3), Score(-2.0, False, 1)]
    assert likeliest(scores) == 0 and likeliest(scores, [1, 4, 2]) == 1


def test_errors_are_those_of_independent_documents_and_of_whole_clusters():
    values = np.random.default_rng(1).normal(size=60).tolist()
    apart = mean_of(values, [str(n) for n in range(60)])
    assert apart.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(60)) and apart.clusters == 60
    twice = mean_of([v for v in values for _ in range(2)], [str(n // 2) for n in range(120)])
    assert twice.error == pytest.approx(apart.error) and twice.mean == pytest.approx(apart.mean) and twice.documents == 120
    assert mean_of([1.0, 0.0], ["", ""]).error is None
    same = mean_of([0.0] * 9, [str(n) for n in range(9)])
    assert same.mean == 0 and same.error == 0, "a paired difference of a run with itself"


def test_a_mean_over_bytes_is_a_ratio_of_sums():
    bits, sizes = np.array([10.0, 3.0, 40.0, 5.0]), np.array([5.0, 1.0, 10.0, 4.0])
    found = mean_of(bits / sizes, ["a", "a", "b", "c"], weights=sizes)
    assert found.mean == pytest.approx(58 / 20)
    draws = np.random.default_rng(5)
    errors, means = [], []
    for _ in range(400):  # of a ratio whose scatter is known by trying
        sizes = draws.uniform(1, 30, 200)
        values = 2 + draws.normal(0, 0.5, 200) + 8 / sizes
        found = mean_of(values, list(map(str, range(200))), weights=sizes)
        errors.append(found.error), means.append(found.mean)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_intervals_know_how_few_clusters_there_are():
    assert half_width("bits_per_byte", 2.0, 0.1, 2) == pytest.approx(12.706 * 0.1, rel=1e-4)
    assert half_width("bits_per_byte", 2.0, 0.1, 1000) == pytest.approx(0.196, rel=2e-3)
    assert half_width("accuracy", 0.5, None, 1) is None and half_width("bits_per_byte", 0.0, 0.0, 9) == 0
    for mean in (
        0.0,
        1.0,
        mean_of([1.0] * 21, ["a"] * 21).mean,
    ):  # none of 10 is right: with a true share of 31 % that would happen once in 40 times
        assert half_width("accuracy", mean, 0.0, 10) == pytest.approx(0.3085, abs=1e-4)


def test_a_mean_of_clusters_counts_each_as_one():
    values, clusters = [1.0, 1.0, 1.0, 0.0, 0.5], ["a", "a", "a", "b", "c"]
    found = mean_of(values, clusters, of_clusters=True)
    assert found.mean == pytest.approx(0.5) and found.clusters == 3
    assert found.error == pytest.approx(np.std([1, 0, 0.5], ddof=1) / math.sqrt(3))
    assert mean_of(values, clusters).mean == pytest.approx(0.7)
