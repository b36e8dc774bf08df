"""Python's garbage collector, which otherwise stops some rank in the middle of a step, and with it all that wait for it."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 100
"""Steps between collections, the same on all ranks."""


@contextmanager
def collected_between_steps() -> Iterator[Callable[[int], None]]:
    """Collect when the yielded function is called after a step that `EVERY` divides, and at no other time.

    What is there after the first step stays for the whole run, and is not looked at again.
    """
    is_frozen = False

    def after(step: int) -> None:
        nonlocal is_frozen
        if not is_frozen:
            gc.collect()
            gc.freeze()
            is_frozen = True
        elif step % EVERY == 0:
            gc.collect()

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield after
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
