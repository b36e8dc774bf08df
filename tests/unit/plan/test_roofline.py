"""The estimate behind `plan`'s MFU: it stands on what bench.kernels counted, and moves as a GPU would."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config import read_run
from pretrain.plan.cost import Cluster, mfu
from pretrain.plan.hardware import GPUS
from pretrain.plan.roofline import COUNTS, estimated_mfu, layer_count, roofline

ROOT = Path(__file__).parents[3]
H100 = GPUS["h100"]


def estimate(recipe: str, *settings: tuple[str, str], world: int = 8) -> float:
    return estimated_mfu(read_run(recipe, list(settings), None, world), H100)


@pytest.mark.parametrize("recipe", ["ul2_124m", "ul2_1.6b"])
@pytest.mark.parametrize("how, way", COUNTS)
def test_counts_are_those_of_the_committed_measurement(recipe, how, way):
    counted = json.loads((ROOT / "bench/results/kernels.json").read_text())["rows"][recipe][how][way]
    shape, count = read_run(recipe, [], None, 8).recipe.shape, COUNTS[how, way]
    assert count.hidden * shape.hidden + count.ffn * shape.ffn == pytest.approx(counted["bytes"], rel=0.02)
    assert count.kernels == counted["products"] + counted["others"]


def test_each_means_is_worth_something():
    assert estimate("ul2_124m") > 1.4 * estimate("ul2_124m", ("--compile", "none"))
    assert estimate("ul2_124m") > 1.05 * estimate("ul2_124m", ("--model.attention", "sdpa"))
    again = estimate("ul2_1.6b", ("--model.recompute", "layer"))
    assert estimate("ul2_1.6b") > estimate("ul2_1.6b", ("--model.recompute", "selective")) > again


@pytest.mark.parametrize("recipe, least, most", [("ul2_124m", 0.3, 0.45), ("ul2_1.6b", 0.42, 0.58), ("bert_base", 0.25, 0.45)])
def test_recipes_are_neither_hopeless_nor_beyond_what_gpus_reach(recipe, least, most):
    assert least < estimate(recipe) < most


def test_small_micro_batches_wait_for_python():
    one = read_run("ul2_124m", [("--ds.train_micro_batch_size_per_gpu", "1")], None, 8)
    assert roofline(one, H100).launches > 0 and estimated_mfu(one, H100) < 0.75 * estimate("ul2_124m")
    assert roofline(read_run("ul2_124m", [], None, 8), H100).launches == 0


def test_a_step_does_the_same_work_however_it_is_cut():
    """Micro-batches change what is added to sums and how often, and nothing else of note."""
    whole = read_run("ul2_1.6b", [], None, 32)
    halves = read_run("ul2_1.6b", [("--ds.train_micro_batch_size_per_gpu", "4")], None, 32)
    of_whole, of_halves = roofline(whole, H100), roofline(halves, H100)
    assert of_halves.products == pytest.approx(of_whole.products) and of_halves.loss == pytest.approx(of_whole.loss)
    assert of_halves.sums == pytest.approx(2 * of_whole.sums) and of_halves.update == of_whole.update


def test_layers_are_recomputed_by_another_forward_pass():
    run = read_run("ul2_1.6b", [("--model.recompute", "layer")], None, 32)
    plain = read_run("ul2_1.6b", [], None, 32)
    assert layer_count(run).kernels == layer_count(plain).kernels + COUNTS["compiled", "forward"].kernels


def test_an_mfu_that_is_given_counts_and_a_pipeline_takes_its_bubble_off():
    run = read_run("ul2_1.6b", [], None, 32)
    assert mfu(run, Cluster(4, 8, given_mfu=0.37)) == 0.37
    assert mfu(run, Cluster(4, 8)) == pytest.approx(estimated_mfu(run, H100))
    piped = read_run("ul2_1.6b", [("--parallel.pipeline", "4")], None, 32)
    assert mfu(piped, Cluster(4, 8)) < 0.95 * estimated_mfu(piped, H100)


def test_faster_memory_helps_and_more_arithmetic_alone_is_not_all_used():
    run = read_run("ul2_124m", [], None, 8)
    assert estimated_mfu(run, GPUS["h200"]) > estimated_mfu(run, H100)
    assert estimated_mfu(run, replace(H100, bf16_tflops=2 * H100.bf16_tflops)) < 0.8 * estimated_mfu(run, H100)
