"""The global order of samples, from any step and over any number of replicas."""

import numpy as np
import pytest

from pretrain.data.loader import open_data


def global_batch(run, step: int) -> np.ndarray:
    """Samples of a step in their global order, put together from all replicas."""
    parts = {}
    for rank in range(run.data_parallel):
        data = open_data(run, rank)
        for index, batch in enumerate(data.batch(step)):
            parts[run.batching.first_sample(index, rank)] = batch.tokens
        data.close()
    return np.concatenate([parts[first] for first in sorted(parts)])


@pytest.mark.parametrize("objective", ["ul2", "causal", "mlm"])
def test_the_order_does_not_depend_on_where_a_run_started_or_on_how_many(project, objective):
    one, two, four = (
        project.run(f"data.objective={objective}", "ds.train_micro_batch_size_per_gpu=2", world_size=size) for size in (1, 2, 4)
    )
    data = open_data(one)
    through = {step: np.concatenate([batch.tokens for batch in data.batch(step)]) for step in range(1, 8)}
    data.close()
    for step in (1, 4, 7):
        for run in (one, two, four):
            assert (global_batch(run, step) == through[step]).all()


def test_a_batch_depends_on_the_samples_consumed_alone(project):
    """At any count, in the middle of what was a step as well."""
    data = open_data(project.run())
    through = data.train.batch(0, 60).tokens
    for first, count in ((0, 1), (1, 8), (7, 13), (23, 5), (59, 1)):
        assert (data.train.batch(first, count).tokens == through[first : first + count]).all()
    data.close()
