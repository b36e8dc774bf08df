"""Random numbers that stay the same for ever: a counter-based generator of which only the raw bits are used."""

import numpy as np


class Draws:
    """Uniform numbers of one sample, whatever was drawn for others."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.Philox(key=np.array(key, dtype=np.uint64))

    def uniform(self, count: int) -> np.ndarray:
        """[count] in [0, 1)."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53
