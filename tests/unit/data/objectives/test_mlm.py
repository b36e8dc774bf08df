"""BERT's masking: the stated shares, whole words, and labels that are the text."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.objectives.mlm import MaskedWords
from pretrain.data.packing import PackedSamples
from tests.unit.data.conftest import FIRST_TEXT, stream_of

PAD, CLS, SEP, MASK = range(4)
TEXT = (FIRST_TEXT, FIRST_TEXT + 2_000_000)


def masker(rate=0.15, longest=510, word_starts=None) -> MaskedWords:
    return MaskedWords(PAD, CLS, SEP, MASK, rate, longest, TEXT, word_starts)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(0, 2**30), st.integers(16, 200), st.booleans())
def test_a_pack_is_whole(lengths, seed, length, whole_words):
    stream = stream_of(*lengths, 2 * length)
    starts = np.arange(TEXT[1]) % 3 == 0 if whole_words else None
    batch = PackedSamples(stream, masker(word_starts=starts), length, seed).batch([0, 3])
    for row in range(2):
        for example in range(batch.segments[row].max() + 1):
            places = np.flatnonzero(batch.segments[row] == example)
            tokens, labels, targets = (array[row, places] for array in (batch.tokens, batch.labels, batch.targets))
            text = labels[1:-1]
            assert (tokens[0], tokens[-1]) == (CLS, SEP) and not targets[[0, -1]].any()
            assert (text == np.arange(text[0], text[0] + len(text))).all(), "labels are the text"
            assert not any(text[0] < FIRST_TEXT + end <= text[-1] for end in stream.ends), "of one document"
            assert (tokens[1:-1] == text)[~targets[1:-1]].all() and targets.any()
            assert batch.prefix[row, places].all(), "read both ways"


def test_fifteen_percent_are_chosen_and_of_these_eighty_masked_ten_random_ten_kept(long_stream):
    samples = PackedSamples(long_stream, masker(), 512, 0)
    chosen = masked = other = count = 0
    for first in range(0, 10_000, 100):
        batch = samples.batch(list(range(first, first + 100)))
        chosen += batch.targets.sum()
        masked += (batch.targets & (batch.tokens == MASK)).sum()
        other += (batch.targets & (batch.tokens != MASK) & (batch.tokens != batch.labels)).sum()
        count += (batch.segments >= 0).sum() - 2 * 100
    assert abs(chosen / count - 0.15) < 0.01 and count > 5_000_000
    for part, share in ((masked, 0.8), (other, 0.1), (chosen - masked - other, 0.1)):
        assert abs(part / chosen - share) < 4 * math.sqrt(share * (1 - share) / chosen) + 1e-6


def test_whole_words_are_chosen_whole_and_as_often():
    """Words of one to four pieces."""
    size = np.random.default_rng(0).integers(1, 5, 400_000)
    starts = np.zeros(TEXT[1], bool)
    starts[FIRST_TEXT + np.cumsum(size)[:-1]] = True
    samples = PackedSamples(stream_of(1_000_000), masker(word_starts=starts), 512, 0)
    chosen = count = 0
    for first in range(0, 2000, 100):
        batch = samples.batch(list(range(first, first + 100)))
        inside = (batch.segments >= 0) & (batch.tokens != CLS) & (batch.tokens != SEP)
        chosen, count = chosen + batch.targets.sum(), count + inside.sum()
        for row in range(100):
            words = np.cumsum(starts[batch.labels[row]] | (batch.tokens[row] == CLS))
            for word in np.unique(words[batch.targets[row]]):
                of_word = (words == word) & inside[row]
                assert batch.targets[row][of_word].all()
    assert abs(chosen / count - 0.15) < 0.01


@pytest.mark.parametrize("document, words, most", [(510, False, 0.16), (30, True, 0.17), (8, True, 0.2)])
def test_whole_words_of_odd_texts_stay_near_the_rate(document, words, most):
    """Without spaces every text is one word; short texts have few to choose from."""
    starts = np.zeros(TEXT[1], bool)
    if words:
        starts[FIRST_TEXT + np.cumsum(np.random.default_rng(0).integers(1, 5, 40_000))] = True
    stream = stream_of(*[document] * (100_000 // document))
    batch = PackedSamples(stream, masker(word_starts=starts), 512, 0).batch(list(range(150)))
    inside = (batch.segments >= 0) & (batch.tokens != CLS) & (batch.tokens != SEP)
    assert 0.14 < batch.targets.sum() / inside.sum() < most


def test_word_starts_and_text_ids_are_those_of_the_tokenizer(home):
    from tokenizer import load_tokenizer

    tokenizer = load_tokenizer(home / "tokenizer")
    ids = tokenizer.processor.encode("words and more words")
    first, last = tokenizer.text_ids()
    assert last == 600 and all(first <= i < last for i in ids) and first > 256 + 100
    assert tokenizer.word_starts()[ids].sum() == 4
    assert tokenizer.processor.is_byte(first - 1) or tokenizer.processor.is_control(first - 1)


@pytest.mark.parametrize("take, turn, hidden", [(100, 0.0, 15), (2, 0.9, 1), (3, 0.0, 1), (10, 0.4, 1), (10, 0.6, 2)])
def test_a_fraction_of_a_token_is_one_by_chance(take, turn, hidden):
    assert masker().cut(512, take, 0.0, turn).hidden == hidden
