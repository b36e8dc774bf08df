"""Denoisers: input and target together are the source; shares, rates and spans are as stated."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.draws import Draws
from pretrain.data.objectives.denoisers import MIXTURES, UL2, Denoiser, longest_text, masked, positions, spans
from pretrain.data.objectives.ul2 import Mixture, Special
from pretrain.data.packing import PackedSamples
from pretrain.errors import UserError
from tests.unit.data.conftest import FIRST_TEXT, stream_of
from tokenizer import load_tokenizer

SPECIAL = Special(pad=0, eos=1, modes={"[NLU]": 2, "[NLG]": 3, "[S2S]": 4}, sentinels=np.arange(5, 305))
EVERY = (*UL2, *MIXTURES["60-20-20"])
TURNS = st.floats(0, 1, exclude_max=True)


def examples(samples: PackedSamples, numbers: list[int]):
    """(denoiser, prefix, target) of every example in some samples, the end token left out."""
    batch = samples.batch(numbers)
    denoisers = samples.objective.denoisers
    for row in range(len(numbers)):
        for example in range(batch.segments[row].max() + 1):
            places = np.flatnonzero(batch.segments[row] == example)
            tokens, labels = batch.tokens[row, places], batch.labels[row, places]
            assert (labels[:-1] == tokens[1:]).all() and labels[-1] == SPECIAL.eos
            assert (batch.positions[row, places] == np.arange(len(places))).all()
            cut = int(batch.prefix[row, places].sum())
            assert batch.prefix[row, places][:cut].all(), "the prefix comes first"
            wanted = np.arange(len(places)) >= max(cut - 1, 0)
            assert (batch.targets[row, places] == wanted).all(), "loss on the target, from its first token, and on the end"
            (kind,) = set(batch.kinds[row, places].tolist())
            yield denoisers[kind], tokens[:cut].tolist(), tokens[cut:].tolist()


def restore(denoiser: Denoiser, prefix: list[int], target: list[int]) -> list[int]:
    """The source text, put together again from prefix and target."""
    if denoiser.mode is not None:
        assert prefix[0] == SPECIAL.modes[denoiser.mode]
        prefix = prefix[1:]
    if denoiser.kind != "span":
        return prefix + target
    out, hidden = [], {}
    for token in target:
        if token < FIRST_TEXT:
            at = hidden.setdefault(token, [])
        else:
            at.append(token)
    marks = [token for token in prefix if token < FIRST_TEXT]
    assert marks == list(hidden) == list(range(5, 5 + len(marks))), "sentinels in order, each once"
    assert all(hidden.values()), "no span is empty"
    for token in prefix:
        out.extend(hidden.pop(token) if token < FIRST_TEXT else [token])
    return out


@settings(max_examples=60)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=20), st.integers(0, 2**30), st.integers(16, 300), st.integers(8, 512))
def test_prefix_and_target_restore_the_source_in_any_pack(lengths, seed, length, longest):
    stream = stream_of(*lengths, 2 * length)
    samples = PackedSamples(stream, Mixture(EVERY, SPECIAL, longest), length, seed)
    begins = set(np.append(0, stream.ends).tolist())
    for denoiser, prefix, target in examples(samples, [0, 1, 5]):
        text = restore(denoiser, prefix, target)
        assert text == list(range(text[0], text[0] + len(text))), "one stretch of text, in order"
        first, last = text[0] - FIRST_TEXT, text[-1] - FIRST_TEXT
        assert not any(first < begin <= last for begin in begins), "of one document"
        assert len(text) <= longest and target and (prefix or denoiser.kind == "causal")


@given(st.sampled_from(EVERY), st.integers(5, 3000), TURNS)
def test_longest_text_is_the_longest_that_fits(denoiser, room, turn):
    length = longest_text(denoiser, room, turn)
    assert positions(denoiser, length, turn) <= room < positions(denoiser, length + 1, turn)


def texts_of_512(long_stream, denoiser: Denoiser, count: int) -> list[tuple[list[int], list[int]]]:
    samples = PackedSamples(long_stream, Mixture((denoiser,), SPECIAL, 512), 2048, 3)
    found = []
    for first in range(0, 10**6, 16):
        for _, prefix, target in examples(samples, list(range(first, first + 16))):
            if len(restore(denoiser, prefix, target)) == 512:
                found.append((prefix, target))
        if len(found) >= count:
            return found[:count]


@pytest.mark.parametrize("denoiser", [d for d in EVERY if d.kind == "span"], ids=lambda d: f"{d.name} {d.mode}")
def test_rates_and_spans_of_10_000_examples_of_512_tokens(long_stream, denoiser):
    hidden = count = 0
    for _, target in texts_of_512(long_stream, denoiser, 10_000):
        marks = sum(token < FIRST_TEXT for token in target)
        hidden, count = hidden + len(target) - marks, count + marks
    assert abs(hidden / (512 * 10_000) - denoiser.rate) < 0.01
    assert abs(hidden / count / denoiser.mean_span - 1) < 0.03


@pytest.mark.parametrize("denoiser", [d for d in EVERY if d.kind == "prefix"], ids=lambda d: d.name)
def test_prefix_targets_take_their_share_on_average(long_stream, denoiser):
    shares = [len(target) / 512 for _, target in texts_of_512(long_stream, denoiser, 10_000)]
    assert abs(np.mean(shares) - denoiser.rate) < 4 * np.std(shares) / 100 + 1 / 512


def test_spans_lie_anywhere_alike(long_stream):
    """Away from its ends every place of a text is hidden equally often; it starts with text that is kept and ends with a span."""
    denoiser, places = UL2[0], np.zeros(512)
    for prefix, target in texts_of_512(long_stream, denoiser, 4000):
        text = restore(denoiser, prefix, target)
        places[[token - text[0] for token in target if token >= FIRST_TEXT]] += 1
    middle = places[40:470] / 4000
    assert places[0] == 0 and places[511] == 4000
    assert np.abs(middle - middle.mean()).max() < 5 * math.sqrt(0.15 * 0.85 / 4000)


@pytest.mark.parametrize("name", MIXTURES)
def test_denoisers_are_chosen_by_weight(name):
    mixture, count = Mixture(MIXTURES[name], SPECIAL, 512), 40_000
    chosen = Counter(mixture.choose(place) for place in Draws(7, 0).uniform(count))
    total = sum(d.weight for d in mixture.denoisers)
    for index, denoiser in enumerate(mixture.denoisers):
        share = denoiser.weight / total
        assert abs(chosen[index] / count - share) < 4 * math.sqrt(share * (1 - share) / count)


def test_a_pack_holds_the_shares_of_its_mixture(project):
    """What is chosen and what is seen agree, on long texts: nothing is lost more often than the rest."""
    samples = PackedSamples(stream_of(400_000), Mixture(UL2, SPECIAL, 64), 2048, 0)
    seen = Counter(denoiser.name for denoiser, *_ in examples(samples, list(range(150))))
    count = sum(seen.values())
    for denoiser in UL2:
        assert abs(seen[denoiser.name] / count - 1 / 7) < 4 * math.sqrt(6 / 49 / count)


@pytest.mark.parametrize("length, spans_of_64, hidden", [(2, 1, 1), (20, 1, 3), (100, 1, 15), (512, 1, 77)])
def test_short_documents_have_one_short_span(length, spans_of_64, hidden):
    """docs/ul2.md, "Short documents"."""
    denoiser = UL2[4]
    assert (denoiser.mean_span, denoiser.rate) == (64, 0.15)
    assert (spans(denoiser, length, 0.0), masked(denoiser, length)) == (spans_of_64, hidden)


def test_draws_are_those_of_the_counter_for_ever():
    assert Draws(1, 2).uniform(3).tolist() == [0.30931491118583454, 0.3569562367935075, 0.036904530468356844]


def test_sentinels_are_counted_and_checked(home):
    tokenizer = load_tokenizer(home / "tokenizer")
    Special.of(tokenizer, UL2, 512)
    with pytest.raises(UserError, match="100 sentinels, but data.max_example_tokens 2048 needs 342"):
        Special.of(tokenizer, UL2, 2048)
