"""Packed samples: pure functions of (seed, index), full, and whole."""

import time

import numpy as np
import pytest

from pretrain.data.batch import PADDING
from pretrain.data.loader import open_data
from pretrain.data.objectives.causal import Causal
from pretrain.data.objectives.denoisers import MIXTURES, Ul2Keys
from pretrain.data.objectives.mlm import MaskedWords, MaskedWordsKeys
from pretrain.data.objectives.ul2 import Mixture
from pretrain.data.packing import PackedSamples
from pretrain.data.tokens import open_tokens
from pretrain.errors import UserError
from pretrain.schema import Strict
from tests.unit.data.conftest import FIRST_TEXT, stream_of
from tests.unit.data.objectives.test_ul2 import SPECIAL
from tokenizer.parts import INDEX_HEADER, MAGIC, VERSION


@pytest.fixture(scope="module")
def data(project):
    data = open_data(project.run())
    yield data
    data.close()


def test_a_sample_depends_on_its_number_alone(project, data):
    whole = data.train.batch(100, 8)
    for row in (0, 3, 7):
        alone = data.train.batch(100 + row, 1)
        for name, array in vars(alone).items():
            assert (array[0] == getattr(whole, name)[row]).all(), name
    other = open_data(project.run("seed=1"))
    assert (other.train.batch(100, 8).tokens != whole.tokens).any()
    other.close()


def test_micro_batches_cut_the_same_global_batch(project):
    """Step 3's samples, whatever the micro-batch."""
    rows = []
    for size in (1, 4):
        data = open_data(project.run(f"ds.train_micro_batch_size_per_gpu={size}"))
        rows.append(np.concatenate([batch.tokens for batch in data.batch(3)]))
        data.close()
    assert (rows[0] == rows[1]).all()


def test_batches_made_ahead_are_the_batches_of_their_steps(data):
    for step in (1, 2, 3, 7, 8):
        ahead = data.batch(step)
        directly = data.train.batch((step - 1) * 8, 8)
        assert (np.concatenate([b.tokens for b in ahead]) == directly.tokens).all()


def test_packs_are_full(data):
    batch = data.train.batch(0, 400)
    assert (batch.segments != PADDING).mean() > 0.98
    empty = batch.segments == PADDING
    special = data.train.sources[0].objective.special
    assert not batch.targets[empty].any() and (batch.tokens[empty] == special.pad).all() and (batch.kinds[empty] == PADDING).all()


def test_tables_need_no_text(data):
    """Between the first and the last pipeline rank."""
    whole, tables = data.train.batch(7, 5), data.train.batch(7, 5, with_text=False)
    for name in ("segments", "positions", "prefix", "kinds"):
        assert (getattr(whole, name) == getattr(tables, name)).all()
    assert not tables.targets.any() and (tables.tokens == 0).all()


def test_the_last_documents_are_held_out():
    train, valid = stream_of(100, 50, 50, 3, 7).split(0.04)
    assert (len(train), len(valid)) == (200, 10)
    assert list(train.ends) == [100, 150, 200] and list(valid.ends) == [3, 10]
    assert valid.tokens[0] == FIRST_TEXT + 200


@pytest.mark.parametrize("lengths", [(500,), (10, 490), (1000, 1000, 8000), (30,) * 10 + (700,)])
def test_a_long_last_document_is_cut_rather_than_held_out_whole(lengths):
    stream = stream_of(*lengths)
    train, valid = stream.split(0.04)
    assert len(valid) == pytest.approx(0.04 * len(stream), abs=1) and len(train) + len(valid) == len(stream)
    assert list(train.ends)[-1] == len(train) and list(valid.ends) == [len(valid)]
    assert list(train.ends)[:-1] == list(stream.ends)[: len(lengths) - 1]
    assert (np.concatenate([train.tokens, valid.tokens]) == stream.tokens).all()


def test_a_token_that_the_tokenizer_does_not_have_is_named():
    stream = stream_of(5000)
    samples = PackedSamples(stream, Causal(pad=0, eos=1), 50, 0, vocab_size=int(stream.tokens.max()) - 999)
    with pytest.raises(UserError, match=rf"holds token \d+, and the tokenizer has {stream.tokens.max() - 999} pieces"):
        for sample in range(samples.windows + 1):
            samples.batch([sample])


def test_ends_of_documents_are_known_to_whoever_looks():
    samples = PackedSamples(stream_of(40, 30, 200, 7), Causal(pad=0, eos=1), 50, 0)
    for sample in range(samples.windows):
        assert len(samples.document_ends(sample)) == samples.batch([sample]).segments.max() + 1
    assert any(any(samples.document_ends(s)) for s in range(3)) and not all(all(samples.document_ends(s)) for s in range(3))


def test_a_hundred_million_documents_open_at_once(tmp_path):
    """The index is looked up, not read: 2 GB of it here, in a file that takes no room on disk but for its ends."""
    documents = 100_000_000
    index, data = tmp_path / "x.idx", tmp_path / "x.bin"
    begins, indices = INDEX_HEADER.size + 4 * documents, INDEX_HEADER.size + 12 * documents
    with index.open("wb") as file:
        file.write(INDEX_HEADER.pack(MAGIC, VERSION, 8, documents, documents + 1))
        file.truncate(indices + 8 * (documents + 1))
        for place, value in (
            (INDEX_HEADER.size + 4 * (documents - 1), np.int32(100)),  # the others are empty
            (begins + 8 * (documents - 1), np.int64(0)),
        ):
            file.seek(place)
            file.write(value.tobytes())
        file.seek(indices + 8 * documents)
        file.write(np.int64(documents).tobytes())
    data.write_bytes(np.arange(100, dtype=np.uint16).tobytes())
    started = time.process_time()
    stream = open_tokens(tmp_path / "x", 600, "")
    assert (len(stream), len(stream.ends), stream.ends[documents - 1]) == (100, documents, 100)
    assert time.process_time() - started < 1


def test_an_epoch_shows_nearly_all_text_once_and_the_next_one_other_windows(data):
    train = data.train.sources[0]
    batches = lambda first: train.batch(list(range(first, first + train.windows)))
    first = batches(0)
    again = batches(train.windows)
    text = lambda batch: np.bincount(batch.tokens[(batch.segments >= 0) & (batch.tokens > 105)], minlength=600)
    whole = np.bincount(train.stream.tokens, minlength=600)
    assert 0.75 < text(first).sum() / whole.sum() < 1.0, "prefixes and targets, less what sentinels took the room of"
    assert (first.tokens != again.tokens).any(axis=1).mean() > 0.9


TEXT = {"max_example_tokens": 200}
CASES = {
    "causal": (Strict(), Causal(pad=0, eos=1)),
    "mlm": (MaskedWordsKeys(**TEXT, mask_rate=0.3), MaskedWords(0, 1, 2, 3, 0.3, 200, (5, 400))),
    **{name: (Ul2Keys(**TEXT, denoisers=name), Mixture(mixture, SPECIAL, 200)) for name, mixture in MIXTURES.items()},
}


@pytest.mark.parametrize("length", [150, 1000])
@pytest.mark.parametrize("name", CASES)
def test_expected_targets_are_those_that_are_drawn(long_stream, name, length):
    keys, objective = CASES[name]
    drawn = PackedSamples(long_stream, objective, length, seed=1).batch(list(range(400))).targets
    by_sample = drawn.mean(1)
    error = np.std(by_sample) / np.sqrt(len(by_sample))
    # What is cut off at the end of a sample is no average example.
    assert objective.target_share(keys, length) == pytest.approx(by_sample.mean(), abs=3 * error + 0.02 * by_sample.mean())
