import pytest

from pretrain.cost.flops import Shape, ideal_ratio
from pretrain.cost.makespan import chunk_costs, ideal_pipeline_ratio, makespan, orders


@pytest.mark.parametrize("ranks, chunks, micro_batches", [(1, 1, 3), (2, 1, 4), (4, 1, 2), (4, 1, 8), (2, 2, 4), (4, 3, 8)])
def test_every_pass_runs_once_on_every_rank(ranks, chunks, micro_batches):
    for order in orders(ranks, chunks, micro_batches):
        assert len(set(order)) == len(order) == 2 * chunks * micro_batches


@pytest.mark.parametrize("ranks, micro_batches", [(1, 5), (2, 2), (4, 8), (4, 3)])
def test_1f1b_with_equal_chunks_takes_the_known_time(ranks, micro_batches):
    """(m + p - 1) (forward + backward): arXiv 2104.04473, section 2.2.1."""
    assert makespan([[1.0]] * ranks, micro_batches) == pytest.approx(3 * (micro_batches + ranks - 1))


def test_interleaving_divides_the_bubble_by_the_chunks():
    """Bubble (p - 1) (f + b) / v: arXiv 2104.04473, section 2.2.2."""
    ranks, chunks, micro_batches = 4, 2, 8
    time = makespan([[1.0 / chunks] * chunks] * ranks, micro_batches)
    assert time == pytest.approx(3 * micro_batches + 3 * (ranks - 1) / chunks)


def test_the_slowest_rank_sets_the_pace():
    assert makespan([[1.0], [2.0]], 10) == pytest.approx(10 * 6 + 3)


def test_costs_hold_the_whole_model_and_the_head_sits_on_the_last_rank():
    shape = Shape(8, 64, 128, 32, 512)
    costs = chunk_costs(shape, 2, 2, 8)
    assert sum(map(sum, costs)) == pytest.approx(8 * shape.layer() + shape.outside())
    assert costs[1][1] - costs[0][1] == pytest.approx(shape.outside() - shape.hidden)


def test_one_rank_gives_the_ratio_of_operations_and_a_pipeline_saves_less():
    shape = Shape(12, 64, 128, 32, 512)
    assert ideal_pipeline_ratio(shape, 6, 1, 1, 4) == pytest.approx(ideal_ratio(shape, 6))
    assert ideal_pipeline_ratio(shape, 6, 4, 1, 4) > ideal_ratio(shape, 6), "the head does not shrink"
