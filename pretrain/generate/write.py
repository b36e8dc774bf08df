"""Prompts to texts, on tensor ranks and replicas."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pretrain.engine import Engine
from pretrain.generate.sampling import GREEDY, Sampling, choose
from pretrain.ranks.process import Ranks
from tokenizer.pieces import Tokenizer

AT_A_TIME = 16
"""Prompts of a batch."""


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    tokens: tuple[int, ...]
    both_ways: bool
    """Whether it is read both ways, as a prefix, or causally."""
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end what is written, wherever tokens begin and end."""

    @property
    def longest(self) -> int:
        return len(self.tokens) + self.max_tokens


def write(
    engine: Engine, ranks: Ranks, tokenizer: Tokenizer, prompts: Sequence[Prompt], end: int, sampling: Sampling = GREEDY
) -> list[tuple[int, ...]]:
    """Continue prompts until the token `end`, a text that stops them or their most tokens; returns, on every rank, what was
    written, without the token `end`.

    Raises:
        UserError: the model is split over pipeline ranks.
    """
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].tokens))
    batches = [order[begin : begin + AT_A_TIME] for begin in range(0, len(order), AT_A_TIME)]
    replicas = engine.batching.replicas
    own: dict[int, tuple[int, ...]] = {}
    for begin in range(0, len(batches), replicas):
        index = begin + ranks.data_parallel_rank
        # A replica without a batch of its own goes along, since in ZeRO stage 3 all gather weights together.
        numbers = batches[index] if index < len(batches) else batches[0][:1]
        found = _write_batch(engine, ranks, tokenizer, [prompts[number] for number in numbers], numbers, end, sampling)
        if index < len(batches):
            own |= dict(zip(numbers, found))
    if ranks.world_size > 1:
        gathered: list[dict[int, tuple[int, ...]]] = [{} for _ in range(ranks.world_size)]
        dist.all_gather_object(gathered, own)
        own = {number: tokens for part in gathered for number, tokens in part.items()}
    return [own[number] for number in range(len(prompts))]


def _write_batch(
    engine: Engine,
    ranks: Ranks,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    numbers: list[int],
    end: int,
    sampling: Sampling,
) -> list[tuple[int, ...]]:
    lengths = [len(prompt.tokens) for prompt in prompts]
    width = max(lengths)
    most = _agreed(ranks, max(prompt.max_tokens for prompt in prompts))
    prefixes = [len(prompt.tokens) if prompt.both_ways else 0 for prompt in prompts]
    decoding = engine.decoding(lengths, prefixes, width + most)
    filled = [(0,) * (width - len(prompt.tokens)) + prompt.tokens for prompt in prompts]
    tokens = torch.tensor(filled, device=ranks.device)
    written: list[list[int]] = [[] for _ in prompts]
    open_ones = [prompt.max_tokens > 0 for prompt in prompts]
    for place in range(most):
        if not _agreed(ranks, any(open_ones)):
            break
        following = choose(decoding.next(tokens), sampling, numbers, place)
        for row, token in enumerate(following.tolist()):
            if not open_ones[row]:
                continue
            if token != end:
                written[row].append(token)
            open_ones[row] = token != end and not _is_over(tokenizer, prompts[row], written[row])
        tokens = following[:, None]
    return [tuple(row) for row in written]


def _is_over(tokenizer: Tokenizer, prompt: Prompt, written: list[int]) -> bool:
    if len(written) >= prompt.max_tokens:
        return True
    text = tokenizer.text(written) if prompt.stop else ""
    return any(stop in text for stop in prompt.stop)


def _agreed(ranks: Ranks, number: int) -> int:
    """Return the largest number that any rank has."""
    if ranks.world_size == 1:
        return int(number)
    largest = torch.tensor(int(number), device=ranks.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def until(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the texts that stop it."""
    ends = [text.index(one) for one in stop if one in text]
    return text[: min(ends)] if ends else text
