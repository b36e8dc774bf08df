"""A run that begins from another program's weights: each rank reads the rows that it keeps a part of."""

from pathlib import Path

import numpy as np
import torch

from pretrain.checkpoint.fragments import Fragment, Split, common
from pretrain.checkpoint.state import ModelState, PlacedShard
from pretrain.config import Run
from pretrain.hugging_face.source import Source
from pretrain.ranks.process import Ranks
from tokenizer.pieces import Tokenizer


@torch.no_grad()
def begin_with_weights(run: Run, tokenizer: Tokenizer, state: ModelState, ranks: Ranks) -> None:
    """Fill the weights that this rank keeps from the folder that the recipe names, if it names one; called on all ranks.

    Raises:
        UserError: the folder is damaged, of another model or tokenizer, or has more or fewer tensors than the model.
    """
    if run.recipe.init_from is None:
        return
    with ranks.all_or_none():
        source = Source(Path(run.recipe.init_from), run, tokenizer)
        for placed in state.kept:
            numbers = placed.shard.numbers("weight")
            numbers.copy_(torch.from_numpy(_filled(source, placed, numbers.detach().cpu().numpy().copy())))
    state.optimizer.restored(0, (0,) * len(state.optimizer.updates))
    if ranks.is_main:
        print(f"beginning with the weights of {run.recipe.init_from}", flush=True)


def _filled(source: Source, placed: PlacedShard, target: np.ndarray) -> np.ndarray:
    """Return a vector of a shard's numbers with those that the folder has; what pads the vocabulary stays."""
    width = int(np.prod(placed.shape[1:], dtype=np.int64))
    starts, lengths, _ = placed.fragment.runs()
    needed = range(int(starts[0]) // width, -(-int(starts[-1] + lengths[-1]) // width)) if len(starts) else range(0)
    for row, numbers in source.rows(placed.shard.name, needed):
        stretch = Fragment(Split.whole(placed.shape), row * width, numbers.size)
        overlap = common(stretch, placed.fragment)
        flat = numbers.reshape(-1)
        for begin, place, count in zip(overlap.source.tolist(), overlap.target.tolist(), overlap.length.tolist()):
            target[place : place + count] = flat[begin : begin + count]
    return target
