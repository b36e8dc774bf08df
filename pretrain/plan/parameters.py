"""Parameters of the whole model, counted on a model that is built without memory."""

import torch
import torch.distributed as dist

from pretrain.config import Run
from pretrain.model.decoder import build_chunks, transformer_config
from pretrain.ranks.groups import destroy_groups, make_groups


def count_parameters(run: Run) -> dict[str, int]:
    """Parameters by global name, of the whole model as one process would build it."""
    recipe = run.recipe.model_copy(update={"parallel": type(run.recipe.parallel)()})
    device = torch.device("cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        make_groups(recipe.parallel, recipe.seed, device)
        with torch.device("meta"):
            chunks = build_chunks(recipe, transformer_config(recipe, torch.float32, on_gpu=False))
        return {chunk.global_name(name): p.numel() for chunk in chunks for name, p in chunk.named_parameters()}
    finally:
        destroy_groups()
        dist.destroy_process_group()
