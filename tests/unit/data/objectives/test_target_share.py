"""How much of a sample the model is to predict: what is expected against what is drawn."""

import numpy as np
import pytest

from pretrain.data.objectives.causal import Causal
from pretrain.data.objectives.denoisers import MIXTURES, Ul2Keys
from pretrain.data.objectives.mlm import MaskedWords, MaskedWordsKeys
from pretrain.data.objectives.ul2 import Mixture
from pretrain.data.packing import PackedSamples
from pretrain.schema import Strict
from tests.unit.data.objectives.test_ul2 import SPECIAL

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
