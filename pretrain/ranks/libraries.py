"""What the libraries read when they are imported; call this before anything imports DeepSpeed or Megatron-Core."""

import logging
import os
import warnings
from collections.abc import Callable
from functools import partial, wraps
from importlib.metadata import version
from types import FunctionType
from typing import Any

import torch

from pretrain.ranks.caches import prepare_caches
from pretrain.ranks.device import DeviceType
from pretrain.versions import require_known_deepspeed, require_tested_torch


def prepare_libraries(device: DeviceType) -> None:
    """Set what DeepSpeed reads at import, and silence notices that say nothing to a user of this program."""
    require_tested_torch(torch.__version__)
    require_known_deepspeed(version("deepspeed"))
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    elif "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name, which torch would pass over
        # Paths of changing length leave holes in memory. Read when a GPU is first used.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, also where no launcher set it
    prepare_caches()
    warnings.filterwarnings("ignore", module=r"megatron\.")
    # Megatron-Core and DeepSpeed use these; the new names came with torch 2.13, and this program supports 2.11.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    _compile_when_called()
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)


def _compile_when_called() -> None:
    """Have torch.compile load the compiler when a function is called, not when it is defined.

    Megatron-Core decorates functions with it that are never called here, and to load the compiler is a fifth of the time in which
    a process starts.
    """
    compile_now = torch.compile
    if getattr(compile_now, "waits", False):
        return

    def compile_later(model: Callable | None = None, **options: Any) -> Callable:
        if model is None:
            return partial(compile_later, **options)
        if not isinstance(model, FunctionType):
            return compile_now(model, **options)
        compiled: list[Callable] = []

        @wraps(model)
        def call(*args: Any, **kwargs: Any) -> object:
            if not compiled:
                compiled.append(compile_now(model, **options))
            return compiled[0](*args, **kwargs)

        return call

    compile_later.waits = True  # type: ignore[attr-defined]
    torch.compile = compile_later
