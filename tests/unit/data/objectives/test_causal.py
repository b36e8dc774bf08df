"""Causal language modelling: every token of an epoch once."""

import numpy as np

from pretrain.data.objectives.causal import Causal
from pretrain.data.packing import PackedSamples
from tests.unit.data.conftest import FIRST_TEXT, stream_of


def test_causal_reads_every_token_of_an_epoch_but_one_window_once():
    stream = stream_of(70, 1, 500, 33, 2, 394)
    samples = PackedSamples(stream, Causal(pad=0, eos=1), 50, 0)
    batch = samples.batch(list(range(samples.windows)))
    read = batch.tokens[batch.segments >= 0]
    assert len(set(read.tolist())) == len(read) == samples.windows * 50 and batch.targets.all()
    ends = set((stream.ends + FIRST_TEXT - 1).tolist())
    for token, label in zip(batch.tokens.ravel().tolist(), batch.labels.ravel().tolist()):
        assert label == (1 if token in ends else token + 1)
    for row in range(samples.windows):
        begins = np.flatnonzero(np.diff(batch.segments[row])) + 1
        assert all(int(batch.tokens[row, at]) - 1 in ends for at in begins), "segments change where documents do"
