"""Denoisers: input and target together are the source; shares, rates and spans are as stated."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.recipe import UL2, Denoiser
from pretrain.data.ul2 import Draws, Mixture, Special, longest_text, masked, positions, spans
from pretrain.errors import UserError
from tokenizer import load_tokenizer

FIRST_TEXT = 1000
SPECIAL = Special(pad=0, eos=1, modes={"[NLU]": 2, "[NLG]": 3, "[S2S]": 4}, sentinels=np.arange(5, 305))
MIXTURE = Mixture(UL2, SPECIAL)


def restore(example, denoiser: Denoiser) -> np.ndarray:
    """The source text, put together again from prefix and target."""
    prefix, target = example.tokens[1 : example.prefix], example.tokens[example.prefix : -1]
    if denoiser.kind == "prefix":
        return np.concatenate([prefix, target])
    out, hidden, at = [], {}, None
    for token in target:
        if token < FIRST_TEXT:
            at = hidden.setdefault(token, [])
        else:
            at.append(token)
    for token in prefix:
        out.extend(hidden.pop(token) if token < FIRST_TEXT else [token])
    assert not hidden
    return np.array(out)


TURNS = st.floats(0, 1, exclude_max=True)


@given(st.sampled_from(range(7)), st.integers(2, 600), TURNS, st.integers(0, 2**30))
def test_prefix_and_target_restore_the_source(index, length, turn, key):
    text, denoiser = np.arange(FIRST_TEXT, FIRST_TEXT + length), UL2[index]
    example = MIXTURE.make(text, index, turn, Draws(key, 0))
    assert example.tokens[0] == SPECIAL.modes[denoiser.mode] and example.tokens[-1] == SPECIAL.eos
    assert restore(example, denoiser).tolist() == text.tolist()
    assert len(example.tokens) - 1 == positions(denoiser, length, turn)
    assert 1 < example.prefix < len(example.tokens) - 1, "both prefix and target hold text"
    sentinels = [t for t in example.tokens[: example.prefix] if 5 <= t < FIRST_TEXT]
    assert sentinels == list(range(5, 5 + spans(denoiser, length, turn))), "in order, each once"


@given(st.sampled_from(range(7)), st.integers(5, 3000), TURNS)
def test_longest_text_is_the_longest_that_fits(index, room, turn):
    length = longest_text(UL2[index], room, turn)
    assert positions(UL2[index], length, turn) <= room < positions(UL2[index], length + 1, turn)


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 2**30))
def test_parts_are_positive_and_add_up(count, key):
    parts = Draws(key, 1).parts(100, count)
    assert len(parts) == count and parts.sum() == 100 and parts.min() > 0


@pytest.mark.parametrize("index", range(6))
def test_rates_and_spans_on_long_texts(index):
    denoiser, turns = UL2[index], Draws(3, index).uniform(10_000)
    hidden = masked(denoiser, 512)
    assert abs(hidden / 512 - denoiser.rate) < 0.01
    assert abs(hidden / np.mean([spans(denoiser, 512, turn) for turn in turns]) / denoiser.mean_span - 1) < 0.03


def test_prefix_targets_take_a_quarter_on_average():
    shares = [1 - (MIXTURE.make(np.arange(512), 6, 0.5, Draws(0, i)).prefix - 1) / 512 for i in range(4000)]
    assert abs(np.mean(shares) - 0.25) < 4 * np.std(shares) / math.sqrt(len(shares)) + 1 / 512


def test_denoisers_are_chosen_by_weight():
    weighted = Mixture((UL2[0], UL2[6].model_copy(update={"weight": 3.0})), SPECIAL)
    draws, count = Draws(7, 0), 20_000
    share = Counter(weighted.choose(draws)[0] for _ in range(count))[1] / count
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / count)


def test_draws_are_those_of_the_counter_for_ever():
    assert Draws(1, 2).uniform(3).tolist() == [0.30931491118583454, 0.3569562367935075, 0.036904530468356844]


def test_sentinels_are_counted_and_checked(home):
    tokenizer = load_tokenizer(home / "tokenizer")
    Special.of(tokenizer, UL2, 512)
    with pytest.raises(UserError, match="100 sentinels, but data.max_example_tokens 2048 needs 342"):
        Special.of(tokenizer, UL2, 2048)
