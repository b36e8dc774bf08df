"""Requests of random tokens, and their scores after a few steps of training."""

import random

from pretrain.evaluate.requests import Request, Score, score
from pretrain.ranks.process import Ranks


def random_requests(count: int, vocabulary: int, longest: int) -> list[Request]:
    """Of all lengths up to `longest` positions, one token in either part among them."""
    draw = random.Random(count)
    found = []
    for _ in range(count):
        positions = draw.randint(1, longest)
        context = draw.choice([1, positions, draw.randint(1, positions)])
        tokens = draw.choices(range(4, vocabulary), k=positions + 1)
        found.append(Request(tuple(tokens[:context]), tuple(tokens[context:])))
    return found


def scores(run, ranks: Ranks, count: int, both_ways: bool) -> list[Score]:
    """Train, so that layers sleep and weights are not up to date, then score."""
    from pretrain.data.loader import open_data
    from pretrain.engine import build_engine

    data, engine = open_data(run, ranks.data_parallel_rank, ranks.needs_text), build_engine(run, ranks)
    for step in range(1, 4):
        engine.step(step, data.batch(step), run.method.paths(step))
    data.close()
    length = run.recipe.data.sequence_length
    return score(engine, random_requests(count, run.recipe.model.vocab_size, length), length, 0, both_ways)
