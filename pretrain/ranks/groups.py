"""Megatron-Core's groups of ranks for a layout."""

import torch
from megatron.core import parallel_state, tensor_parallel

from pretrain.config.recipe import Parallel


def make_groups(layout: Parallel, seed: int, device: torch.device) -> None:
    """Make Megatron-Core's groups and random states for a layout. torch.distributed must be up."""
    if device.type == "cpu":
        from pretrain.ranks import cpu  # replaces what Megatron-Core takes a GPU for, so only where there is none

        cpu.install()
    parallel_state.initialize_model_parallel(
        layout.tensor,
        layout.pipeline,
        layout.virtual if layout.virtual > 1 else None,
        create_gloo_process_groups=False,  # for a way to save that is not used; each connects all ranks with all
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def destroy_groups() -> None:
    """Take the groups down again."""
    parallel_state.destroy_model_parallel()
