"""A folder of Hugging Face's as the source of a model's weights, checked by name and shape and read by our names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pretrain.config import Run
from pretrain.errors import UserError
from pretrain.files import sha256
from pretrain.hugging_face.architectures import TOKEN_TYPE_ROWS, output_biases
from pretrain.hugging_face.folder import WeightFolder
from pretrain.hugging_face.settings import read_config, require_same
from pretrain.hugging_face.tensors import OF_VOCABULARY, POSITIONS, Rows, bert_table, columns, decoder_table, sizes
from tokenizer.pieces import Tokenizer

FROM_CONFIG = (".rotary_emb.inv_freq", "bert.embeddings.position_ids")
"""Ends of names of tensors that follow from the config."""
OTHER_HEADS = ("bert.pooler.", "cls.seq_relationship.", "cls.predictions.decoder.")
"""Beginnings of names of what MegatronBertForPreTraining has beside what is trained here, or twice."""


class Source:
    """The weights of a folder that fits a run."""

    def __init__(self, folder: Path, run: Run, tokenizer: Tokenizer) -> None:
        """Read its headers, and no weights.

        Raises:
            UserError: it is damaged, of another model or tokenizer, or has more or fewer tensors than the model.
        """
        config, self._model = read_config(folder), run.recipe.model
        require_same(run.recipe, config, folder)
        _require_tokenizer(folder, tokenizer)
        self._is_bert = config["model_type"] == "megatron-bert"
        self._words, model = tokenizer.own_pieces, run.recipe.model
        length = run.recipe.data.sequence_length
        self._table = bert_table(model, self._words, length) if self._is_bert else decoder_table(model, self._words)
        self._weights = WeightFolder.open(folder)
        self._means: dict[str, np.ndarray] = {}
        self._require_tensors(output_biases(model) if config.get("attention_bias") else {})

    def rows(self, name: str, needed: range) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of one of our parameters, [rows, ...] fp32, a stretch at a time, each with the number of its first row.

        There are none of those that pad the vocabulary; those of pieces that the tokenizer has added are the mean of its own.

        Raises:
            UserError: a file cannot be read, or holds what is not finite.
        """
        begin = 0
        for part in self._table[name]:
            first, end = max(needed.start, begin), min(needed.stop, begin + part.count)
            for row, numbers in self._read(name, part, first - begin, end - begin):
                yield begin + row, numbers
            begin += part.count
        if name in OF_VOCABULARY:
            first, end = max(needed.start, begin), min(needed.stop, self._model.vocab_size)
            if first < end:
                mean = self._mean(self._table[name][0].tensor)
                yield first, np.broadcast_to(mean, (end - first, *mean.shape)).copy()

    def _read(self, name: str, part: Rows, first: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        # Every token is of the first text of a pair here, so that its row goes into the positions.
        type_row = np.zeros(1, np.float32)
        if name == POSITIONS and TOKEN_TYPE_ROWS in self._weights.shapes:
            type_row = next(numbers for _, numbers in self._weights.rows(TOKEN_TYPE_ROWS, 0, 1))
        for row, numbers in self._weights.rows(part.tensor, part.first + first, part.first + end):
            if not np.isfinite(numbers).all() or not np.isfinite(type_row).all():
                raise UserError(f"init_from {self._weights.path}: {part.tensor} has numbers that are not finite")
            yield row - part.first, numbers + type_row if name == POSITIONS else numbers

    def _mean(self, tensor: str) -> np.ndarray:
        """The mean of the rows of the tokenizer's own pieces, summed in one order on every layout."""
        if tensor not in self._means:
            total = np.zeros(self._weights.shapes[tensor][1:], np.float64)
            for _, numbers in self._weights.rows(tensor, 0, self._words):
                total += numbers.sum(0, dtype=np.float64)
            self._means[tensor] = (total / self._words).astype(np.float32)
        return self._means[tensor]

    def _require_tensors(self, zeros: dict[str, tuple[int, ...]]) -> None:
        """
        Args:
            zeros: tensors that the model has no place for and whose numbers must be 0, with their shapes.

        Raises:
            UserError: tensors are missing, are others, or have other shapes than they would have.
        """
        folder, there, needed = self._weights.path, self._weights.shapes, sizes(self._table)
        if missing := sorted(needed.keys() - there.keys()):
            raise UserError(f"init_from {folder}: lacks {_some(missing)}")
        known = {*needed, *zeros, *(["lm_head.weight"] if self._model.tied_embeddings else [])}
        endings, beginnings = FROM_CONFIG, OTHER_HEADS if self._is_bert else ()
        if self._is_bert:
            known.add(TOKEN_TYPE_ROWS)
        others = [name for name in there if name not in known and not name.endswith(endings) and not name.startswith(beginnings)]
        if others:
            raise UserError(f"init_from {folder}: holds {_some(sorted(others))}, for which the recipe's model has no place")
        for name, parts in self._table.items():
            width, longer = columns(name, self._model), name in (*OF_VOCABULARY, POSITIONS)
            for tensor in {part.tensor for part in parts}:
                self._require_shape(tensor, (needed[tensor], *(() if width is None else (width,))), longer)
        if TOKEN_TYPE_ROWS in there and self._is_bert:
            self._require_shape(TOKEN_TYPE_ROWS, (1, self._model.hidden_size), may_be_longer=True)
        for name in sorted(zeros.keys() & there.keys()):
            self._require_shape(name, zeros[name], may_be_longer=False)
            if any(numbers.any() for _, numbers in self._weights.rows(name, 0, zeros[name][0])):
                raise UserError(f"init_from {folder}: {name} is not 0, and biases are here of queries, keys and values alone")

    def _require_shape(self, tensor: str, wanted: tuple[int, ...], may_be_longer: bool) -> None:
        shape = self._weights.shapes[tensor]
        fits = len(shape) == len(wanted) and shape[1:] == wanted[1:]
        if not fits or shape[0] < wanted[0] or (shape[0] > wanted[0] and not may_be_longer):
            least = "at least " if may_be_longer else ""
            raise UserError(f"init_from {self._weights.path}: {tensor} is {list(shape)}, and must be {least}{list(wanted)}")


def _require_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """A model knows the pieces of its own tokenizer alone."""
    file = folder / tokenizer.file.name
    if not file.is_file():
        raise UserError(f"init_from {folder}: has no {file.name}, by which to see that data.tokenizer is the model's own")
    if sha256(file) != sha256(tokenizer.file):
        raise UserError(f"init_from {folder}: its {file.name} is another than that of data.tokenizer {tokenizer.directory}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
