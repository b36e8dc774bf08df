"""Megatron-Core and DeepSpeed on CPU. The only file that knows where they take a GPU for granted.

Each replacement below answers one line of megatron-core 0.16 that names CUDA. Nothing here is imported where an
accelerator is used.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as tp_random
from megatron.core.transformer import utils as transformer_utils


def install() -> None:
    """Let Megatron-Core allocate, count and draw on the CPU."""
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]  # device=torch.cuda.current_device() in many places
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]  # LanguageModule.setup_embeddings_and_output_layer
    schedules.torch = _on_cpu("zeros")  # the schedules' token counter
    transformer_utils.torch = _on_cpu("ones")
    tp_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    tp_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    tp_random._CUDA_RNG_STATE_TRACKER = _RngTracker()
    tp_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True

    import deepspeed

    # A shared-memory all-reduce that DeepSpeed would compile when a job starts; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _on_cpu(*names: str) -> types.ModuleType:
    """The module `torch`, but with `names` ignoring a literal device="cuda"."""

    class Torch(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

    def on_cpu(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return function(*args, **kwargs)

        return call

    module = Torch("torch")
    for name in names:
        setattr(module, name, on_cpu(getattr(torch, name)))
    return module


class _RngTracker(tp_random.CudaRNGStatesTracker):
    """Megatron-Core's named random states, kept for the CPU's generator."""

    def add(self, name: str, seed: int) -> None:
        self._is_initialized = True
        self.seeds_.add(seed)
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = tp_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)
