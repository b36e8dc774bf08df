"""A run that begins from another program's weights: each rank reads the rows that it keeps a part of."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pretrain.checkpoint.fragments import Fragment, Split, common
from pretrain.checkpoint.state import ModelState, PlacedShard
from pretrain.config import Run
from pretrain.errors import UserError
from pretrain.files import sha256
from pretrain.hugging_face.architectures import TOKEN_TYPE_ROWS, output_biases
from pretrain.hugging_face.folder import WeightFolder
from pretrain.hugging_face.settings import read_config, require_same
from pretrain.hugging_face.tensors import OF_VOCABULARY, Rows, Table, bert_table, decoder_table
from pretrain.ranks.process import Ranks
from tokenizer.pieces import Tokenizer

POSITIONS = "embedding.position_embeddings.weight"
NO_WEIGHTS = (".rotary_emb.inv_freq", "bert.embeddings.position_ids")
"""Ends of names of tensors that follow from the config."""
OTHER_HEADS = ("bert.pooler.", "cls.seq_relationship.", "cls.predictions.decoder.")
"""Beginnings of names of what MegatronBertForPreTraining has beside what is trained here, or twice."""


def begin_with_weights(run: Run, tokenizer: Tokenizer, state: ModelState, ranks: Ranks) -> None:
    """Fill the weights that this rank keeps from the folder that the recipe names, if it names one; called on all ranks.

    Rows of pieces that the tokenizer has added behind its own become the mean of those rows.

    Raises:
        UserError: the folder is damaged, of another model or tokenizer, or has more or fewer tensors than the model.
    """
    if run.recipe.init_from is None:
        return
    with ranks.all_or_none():
        _fill(Path(run.recipe.init_from), run, tokenizer, state)
    state.optimizer.restored(0, (0,) * len(state.optimizer.updates))
    if ranks.is_main:
        print(f"beginning with the weights of {run.recipe.init_from}", flush=True)


@torch.no_grad()
def _fill(folder: Path, run: Run, tokenizer: Tokenizer, state: ModelState) -> None:
    config = read_config(folder)
    require_same(run.recipe, config, folder)
    _require_tokenizer(folder, tokenizer)
    source = _Source(folder, run, tokenizer, is_bert=config["model_type"] == "megatron-bert")
    source.require_names(output_biases(run.recipe.model) if config.get("attention_bias") else {})
    for placed in state.kept:
        source.require_shapes(placed)
        numbers = placed.shard.numbers("weight")
        numbers.copy_(torch.from_numpy(source.filled(placed, numbers.detach().cpu().numpy().copy())))


class _Source:
    """The weights of a folder, by our names."""

    def __init__(self, folder: Path, run: Run, tokenizer: Tokenizer, is_bert: bool) -> None:
        model, self.words = run.recipe.model, tokenizer.own_pieces
        length = run.recipe.data.sequence_length
        self.vocabulary = model.vocab_size
        self.weights = WeightFolder.open(folder)
        self.table: Table = bert_table(model, self.words, length) if is_bert else decoder_table(model, self.words)
        self.tied = model.tied_embeddings
        self._means: dict[str, np.ndarray] = {}

    def require_names(self, zeros: dict[str, tuple[int, ...]]) -> None:
        """
        Args:
            zeros: tensors that the model has no place for and whose numbers must be 0.

        Raises:
            UserError: tensors are missing, or there are others.
        """
        folder, there = self.weights.path, set(self.weights.shapes)
        needed = {rows.tensor for parts in self.table.values() for rows in parts}
        if missing := sorted(needed - there):
            raise UserError(f"init_from {folder}: lacks {_some(missing)}")
        known = needed | set(zeros) | {TOKEN_TYPE_ROWS} | ({"lm_head.weight"} if self.tied else set())
        if others := sorted(name for name in there - known if not name.endswith(NO_WEIGHTS) and not name.startswith(OTHER_HEADS)):
            raise UserError(f"init_from {folder}: holds {_some(others)}, for which the recipe's model has no place")
        for name in sorted(set(zeros) & there):
            if any(numbers.any() for _, numbers in self.weights.rows(name, 0, self.weights.shapes[name][0])):
                raise UserError(f"init_from {folder}: {name} is not 0, and biases are here of queries, keys and values alone")

    def require_shapes(self, placed: PlacedShard) -> None:
        """
        Raises:
            UserError: a tensor that a parameter consists of has another shape than it would have.
        """
        name = placed.shard.name
        sizes: dict[str, int] = {}
        for rows in self.table[name]:
            sizes[rows.tensor] = max(sizes.get(rows.tensor, 0), rows.first + rows.count)
        for tensor, count in sizes.items():
            shape, wanted = self.weights.shapes[tensor], (count, *placed.shape[1:])
            may_be_longer = name in (*OF_VOCABULARY, POSITIONS)
            if shape[1:] != wanted[1:] or shape[0] < count or (shape[0] > count and not may_be_longer):
                least = "at least " if may_be_longer else ""
                raise UserError(f"init_from {self.weights.path}: {tensor} is {list(shape)}, and must be {least}{list(wanted)}")

    def filled(self, placed: PlacedShard, target: np.ndarray) -> np.ndarray:
        """Return a vector of a shard's numbers with those that the folder has; what pads the vocabulary stays."""
        width = int(np.prod(placed.shape[1:], dtype=np.int64))
        starts, lengths, _ = placed.fragment.runs()
        needed = range(int(starts[0]) // width, -(-int(starts[-1] + lengths[-1]) // width)) if len(starts) else range(0)
        for row, numbers in self._rows(placed.shard.name, needed):
            stretch = Fragment(Split.whole(placed.shape), row * width, numbers.size)
            overlap = common(stretch, placed.fragment)
            flat = numbers.reshape(-1)
            for begin, place, count in zip(overlap.source.tolist(), overlap.target.tolist(), overlap.length.tolist()):
                target[place : place + count] = flat[begin : begin + count]
        return target

    def _rows(self, name: str, needed: range) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of one of our parameters, each stretch with the number of its first row."""
        begin = 0
        for part in self.table[name]:
            first, end = max(needed.start, begin), min(needed.stop, begin + part.count)
            for row, numbers in self._read(name, part, first - begin, end - begin):
                yield begin + row, numbers
            begin += part.count
        if name in OF_VOCABULARY:
            first, end = max(needed.start, begin), min(needed.stop, self.vocabulary)
            if first < end:
                mean = self._mean(self.table[name][0].tensor)
                yield first, np.broadcast_to(mean, (end - first, *mean.shape)).copy()

    def _read(self, name: str, part: Rows, first: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        # Every token is of the first text of a pair here, so that its row goes into the positions.
        type_row = np.zeros(1, np.float32)
        if name == POSITIONS and TOKEN_TYPE_ROWS in self.weights.shapes:
            type_row = next(numbers for _, numbers in self.weights.rows(TOKEN_TYPE_ROWS, 0, 1))
        for row, numbers in self.weights.rows(part.tensor, part.first + first, part.first + end):
            yield row - part.first, numbers + type_row if name == POSITIONS else numbers

    def _mean(self, tensor: str) -> np.ndarray:
        """The mean of the rows of the tokenizer's own pieces, summed in one order on every layout."""
        if tensor not in self._means:
            total = np.zeros(self.weights.shapes[tensor][1:], np.float64)
            for _, numbers in self.weights.rows(tensor, 0, self.words):
                total += numbers.sum(0, dtype=np.float64)
            self._means[tensor] = (total / self.words).astype(np.float32)
        return self._means[tensor]


def _require_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """A model knows the pieces of its own tokenizer alone."""
    file = folder / tokenizer.file.name
    if not file.is_file():
        raise UserError(f"init_from {folder}: has no {file.name}, by which to see that data.tokenizer is the model's own")
    if sha256(file) != sha256(tokenizer.file):
        raise UserError(f"init_from {folder}: its {file.name} is another than that of data.tokenizer {tokenizer.directory}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
