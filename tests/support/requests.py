"""Requests of random tokens, and their scores after a few steps of training."""

import random

from pretrain.evaluate.requests import Request, Score, score
from pretrain.ranks.process import Ranks


def random_requests(count: int, vocabulary: int, longest: int) -> list[Request]:
    """Of all lengths up to `longest` positions, one token in either part among them; some have the context of the one before."""
    draw = random.Random(count)
    found = []
    for _ in range(count):
        positions = draw.randint(1, longest)
        context = draw.choice([1, positions, draw.randint(1, positions)])
        tokens = draw.choices(range(4, vocabulary), k=positions + 1)
        request = Request(tuple(tokens[:context]), tuple(tokens[context:]))
        if found and draw.random() < 0.4:
            request = Request(found[-1].context, request.continuation[: longest + 1 - len(found[-1].context)])
        found.append(request)
    return found


def trained(run, ranks: Ranks):
    """Return an engine after some steps, so that layers sleep and weights are not up to date."""
    from pretrain.data.loader import open_data
    from pretrain.engine import build_engine

    data, engine = open_data(run, ranks.data_parallel_rank, ranks.needs_text), build_engine(run, ranks)
    for step in range(1, 4):
        engine.step(step, data.batch(step), run.method.paths(step))
    data.close()
    return engine


def scores(run, ranks: Ranks, count: int, both_ways: bool) -> list[Score]:
    """Train, then score."""
    engine, length = trained(run, ranks), run.recipe.data.sequence_length
    return score(engine, random_requests(count, run.recipe.model.vocab_size, length), 0, both_ways)


def written(run, ranks: Ranks, count: int) -> list[tuple[int, ...]]:
    """Train, then continue random prompts, half of them read both ways; greedily and with draws."""
    from pretrain.data.loader import tokenizer_of
    from pretrain.generate.sampling import Sampling
    from pretrain.generate.write import Prompt, write

    engine, tokenizer, longest = trained(run, ranks), tokenizer_of(run), run.recipe.data.sequence_length // 2
    requests = random_requests(count, run.recipe.model.vocab_size, longest)
    prompts = [Prompt(request.context, number % 2 == 0, 8 + number % 5) for number, request in enumerate(requests)]
    return [
        *write(engine, ranks, tokenizer, prompts, end=-1),
        *write(engine, ranks, tokenizer, prompts, end=-1, sampling=Sampling(1.0, 0.9, 7)),
    ]


def agreements(run, ranks: Ranks) -> dict[str, float]:
    """Train, then hold parts of the model against the whole."""
    from pretrain.data.loader import open_data
    from pretrain.subnetwork import LayerPath

    engine, data = trained(run, ranks), open_data(run, ranks.data_parallel_rank, ranks.needs_text)
    whole = LayerPath.full(run.recipe.model.num_layers)
    found = engine.agreement(data.held_out(), whole, {**run.parts, "whole": whole})
    data.close()
    return found
