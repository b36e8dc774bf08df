"""What comes next, from a cache of keys and values: Megatron-Core's static context, which model/attention.py fills."""

from collections.abc import Sequence

import torch
from megatron.core.inference.contexts.static_context import StaticInferenceContext
from torch import Tensor

from pretrain.model.decoder import Decoder
from pretrain.model.layer import LayerInputs
from pretrain.subnetwork import LayerPath


class Decoding:
    """A batch of texts that become longer, a few tokens at a time. Prompts are filled up from the left, so that all end together;
    rotary positions are relative, and nobody reads what fills up."""

    def __init__(
        self,
        chunk: Decoder,
        path: LayerPath,
        lengths: Sequence[int],
        prefixes: Sequence[int],
        longest: int,
        pieces: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            lengths: [b], tokens of each prompt.
            prefixes: [b], how many of them are read both ways.
            longest: tokens of a text, at most.
            pieces: of the tokenizer; rows of the vocabulary beyond them get no logit.
        """
        self._chunk, self._path, self._pieces, self.device = chunk, path, pieces, device
        self.width = max(lengths)
        """Positions of the prompts, filled up."""
        self._begin = self.width - torch.tensor(lengths, device=device)
        self._prefix_end = self._begin + torch.tensor(prefixes, device=device)
        self._context = StaticInferenceContext(len(lengths), longest)

    @torch.no_grad()
    def next(self, tokens: Tensor) -> Tensor:
        """Read tokens, [b, new], first those of the prompts, and return logits of what follows the last, [b, pieces] float32."""
        count, new = tokens.shape
        done = self._context.sequence_len_offset
        places = torch.arange(done, done + new, device=self.device)
        positions = (places[None, :] - self._begin[:, None]).clamp(min=0)
        inputs = LayerInputs(self._mask(places, done + new), self._path)
        logits = self._chunk(tokens, positions, inputs, inference_context=self._context, runtime_gather_output=True)
        self._context.sequence_len_offset += new
        return logits[:, -1, : self._pieces].float()

    def _mask(self, queries: Tensor, keys: int) -> Tensor:
        """[b, 1, new, keys] to be added to attention scores: 0 where reading is allowed, -inf elsewhere. Every row allows
        itself."""
        key, query = torch.arange(keys, device=self.device)[None, None, :], queries[None, :, None]
        is_text, is_prefix = key >= self._begin[:, None, None], key < self._prefix_end[:, None, None]
        may = is_text & ((key <= query) | is_prefix) | (key == query)
        mask = torch.zeros(may.shape, dtype=self._chunk.config.params_dtype, device=self.device)
        return mask.masked_fill_(~may, -torch.inf)[:, None]
