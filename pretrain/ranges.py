"""Names for stretches of a step, for profilers to show."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd.profiler import record_function


@contextmanager
def named(name: str) -> Iterator[None]:
    """Show what is inside by this name: in the trace of `--profile-steps`, and on a GPU as an NVTX range in Nsight Systems."""
    with record_function(name):
        if not torch.cuda.is_initialized():
            yield
            return
        with torch.cuda.nvtx.range(name):
            yield
