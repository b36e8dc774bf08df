"""What of a model sleeps, and since when: the same on every rank, because it follows from the paths alone."""

import hashlib
from collections.abc import Iterable

LONGEST_SLEEP = 64
"""Steps after which a sleeping unit's missed updates are made up for, to bound their list and the longest halt."""


class Sleepers:
    """What each unit's masters have been through (subnetwork/units.py). One sleeps in a step in which no replica's path runs it.

    Under `skipped_update` "exact" a sleeping unit misses updates that are made up for later, with a gradient of 0 and the rate
    of their step; under "none" there is nothing to make up for.
    """

    def __init__(self, units: int, is_exact: bool) -> None:
        self.is_exact = is_exact
        self.step = 0
        """The last step."""
        self.updates = [0] * units
        """AdamW's updates of each unit so far."""
        self._missed_since = [0] * units
        """The step of each unit's last update, or later where it was made up for."""
        self._rates: dict[int, float] = {}
        """Learning rates of the steps that a unit may have missed."""

    def missed(self, unit: int) -> list[float]:
        """Return the rates of the updates that a unit has missed, in order."""
        return [self._rates[step] for step in range(self._missed_since[unit] + 1, self.step + 1)] if self.is_exact else []

    def made_up(self, unit: int) -> None:
        """Note that a unit's missed updates have been made."""
        self.updates[unit] += len(self.missed(unit))
        self._missed_since[unit] = self.step

    def overslept(self) -> list[int]:
        """Return the units that have missed so many updates that they are to be made up for."""
        if not self.is_exact:
            return []
        return [unit for unit, since in enumerate(self._missed_since) if self.step - since >= LONGEST_SLEEP]

    def stepped(self, awake: Iterable[int], rate: float) -> None:
        """Note that a step has updated these units."""
        self.step += 1
        self._rates[self.step] = rate
        for unit in awake:
            self._missed_since[unit] = self.step
            self.updates[unit] += 1
        oldest = min(self._missed_since) if self.is_exact else self.step
        for step in [step for step in self._rates if step <= oldest]:
            del self._rates[step]

    def restored(self, step: int, updates: Iterable[int]) -> None:
        """Begin after a checkpoint, in which nothing is missing."""
        self.step, self.updates = step, list(updates)
        self._missed_since = [step] * len(self.updates)
        self._rates.clear()

    def fingerprint(self) -> int:
        """Return a 63-bit hash of it all, which ranks compare before a step."""
        text = f"{self.step} {self.updates} {self._missed_since} {sorted(self._rates.items())}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
