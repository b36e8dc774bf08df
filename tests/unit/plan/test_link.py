"""Steps whose replicas send over a link: bounds that hold for any, and what `plan` makes of them."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import read_run
from pretrain.plan.cost import Cluster, speed
from pretrain.plan.link import GBIT, Links, Work, forecast, scaled, step_seconds
from pretrain.plan.wire import Traffic

sizes = st.floats(0, 1e9)
works = st.builds(
    lambda forward, backward, more, layers: Work(forward + backward + more, forward, backward, layers),
    *[st.floats(0.01, 10)] * 3,
    st.integers(1, 24),
)
EVERYWHERE = dict(
    work=works, sent=st.builds(Traffic, sizes, sizes, sizes, sizes), rate=st.floats(1e6, 1e12), stage=st.integers(0, 3)
)


def seconds(work: Work, sent: Traffic, rate: float, stage: int, overlaps: bool, micro_batches: int = 1) -> float:
    return step_seconds(work, sent, rate, micro_batches, stage, overlaps)


@given(**EVERYWHERE, overlaps=st.booleans())
def test_a_step_is_neither_faster_than_its_parts_nor_slower_than_one_after_the_other(work, sent, rate, stage, overlaps):
    step = seconds(work, sent, rate, stage, overlaps)
    assert max(work.seconds, sent.total / rate) <= step * (1 + 1e-9)
    assert step <= (work.seconds + sent.total / rate) * (1 + 1e-9)


@given(**EVERYWHERE, factor=st.floats(1, 100))
def test_overlap_and_a_faster_link_never_cost(work, sent, rate, stage, factor):
    step = seconds(work, sent, rate, stage, overlaps=False)
    assert seconds(work, sent, rate, stage, overlaps=True) <= step * (1 + 1e-9)
    assert seconds(work, sent, rate * factor, stage, overlaps=False) <= step * (1 + 1e-9)


@given(**EVERYWHERE, overlaps=st.booleans(), per_byte=st.floats(1e-12, 1e-8))
def test_what_sending_takes_from_computing_is_paid_for_on_any_link(work, sent, rate, stage, overlaps, per_byte):
    free = seconds(work, sent, rate, stage, overlaps)
    paid = seconds(replace(work, per_byte=per_byte), sent, rate, stage, overlaps)
    assert paid == pytest.approx(free + per_byte * sent.total, rel=1e-9)


def test_without_overlap_sums_wait_for_the_schedule_and_gathers_go_beside_it():
    work, sent = Work(6.0, 2.0, 4.0, 2), Traffic(sums=8.0, gathers=4.0, outside_sums=1.0, outside_gathers=1.0)
    assert seconds(work, sent, 1.0, 0, False) == 6 + 14
    # The embedding arrives at 1, layers at 3 and 5, so that forward passes end at 4 and 6, backward passes at 8 and 10.
    assert seconds(work, sent, 1.0, 1, False) == 10 + 8 + 1
    assert seconds(work, sent, 1.0, 1, True) == 8 + 8 + 1, "the first sum starts at 8"
    # Stage 3 gathers each layer for both ways: its way there ends at 4, on the way back weights are there at 5 and 6.
    assert seconds(work, sent, 1.0, 3, True) == 7 + 4 + 4 + 1


def test_replicas_that_fill_several_nodes_share_the_nodes_link():
    links, cluster = Links(node=400, gpu=3600), Cluster(4, 8)
    plain = read_run("ul2_1.6b", [], None, 32)
    assert links.bytes_per_second(plain, cluster) == 400 * GBIT, "one ring through all GPUs"
    tensor = read_run("ul2_1.6b", [("--parallel.tensor", "2")], None, 32)
    assert links.bytes_per_second(tensor, cluster) == 200 * GBIT, "two rings"
    assert links.bytes_per_second(plain, Cluster(1, 32)) == 3600 * GBIT
    settings = [("--parallel.pipeline", "3"), ("--ds.train_batch_size", "576")]
    across = read_run("ul2_1.6b", settings, None, 12)  # ranks 4 to 7 are one ring on two nodes of 6
    assert links.bytes_per_second(across, Cluster(2, 6)) == 400 * GBIT
    half = read_run("ul2_1.6b", [("--parallel.pipeline", "2"), ("--ds.train_batch_size", "576")], None, 24)
    assert links.bytes_per_second(half, Cluster(3, 8)) == 200 * GBIT, "on the second node both rings end and begin"


def test_skipping_pays_on_any_link_here_and_in_stage_0_only_where_nothing_waits():
    by_layer = read_run("ul2_1.6b", [], None, 32)
    slow, fast = Links(50, 3600), Links(1e9, 1e9)
    assert forecast(by_layer, Cluster(4, 8), slow).speedup > 0.95 / speed(by_layer).ratio
    assert forecast(by_layer, Cluster(4, 8), fast).speedup == pytest.approx(1 / speed(by_layer).ratio, rel=1e-3)
    everything = read_run("ul2_1.6b", [("--ds.zero_optimization.stage", "0"), ("--ds.bf16.enabled", "false")], None, 32)
    assert forecast(everything, Cluster(4, 8), Links(2, 3600)).speedup < 1.1
    assert forecast(by_layer, Cluster(4, 8), slow).waits > forecast(by_layer, Cluster(4, 8), fast).waits >= 0


@pytest.mark.parametrize("stage", ["1", "3"])
@pytest.mark.parametrize("recompute", ["none", "layer"])
def test_nothing_waits_on_an_endless_link(stage, recompute):
    settings = [("--ds.zero_optimization.stage", stage), ("--model.recompute", recompute)]
    for gpus in (8, 64):  # with eight micro-batches and with one
        run = read_run("ul2_1.6b", settings, None, gpus)
        found = forecast(run, Cluster(gpus // 8, 8), Links(1e9, 1e9))
        assert found.waits == pytest.approx(0, abs=1e-3) and found.full.whole == pytest.approx(found.full.computing, rel=1e-3)


def test_a_pipeline_that_fills_and_drains_more_computes_more_slowly():
    run = read_run("ul2_1.6b", [("--parallel.pipeline", "4")], None, 32)
    found = {
        larger.gpus: larger.given_mfu for larger, grown in scaled(run, Cluster(4, 8, given_mfu=0.4), 256) if grown is not None
    }
    assert found[32] == pytest.approx(0.4) and found[8] > 0.4 > found[64] > found[256]


def test_more_gpus_are_looked_at_until_the_batch_is_too_small():
    run, cluster = read_run("ul2_1.6b", [], None, 32), Cluster(4, 8)
    found = {larger.gpus: grown for larger, grown in scaled(run, cluster, 1000)}
    assert list(found) == [8, 16, 32, 64, 128, 256, 512]
    assert found[8].data_parallel == 8 and found[64].micro_batches == 1 and found[128] is None
    assert replace(found[32], world_size=32) == run


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--link-gbps 400", "--link-gbps needs --nodes"),
        ("--nodes 1 --gpus-per-node 8 --scale-to 64", "--scale-to needs --link-gbps"),
        ("--nodes 1 --gpus-per-node 8 --intra-node-gbps 9", "--intra-node-gbps needs --link-gbps"),
        ("--nodes 1 --gpus-per-node 8 --link-gbps 0", "--link-gbps 0 must be a number of at least 0.001"),
        ("--nodes 1 --gpus-per-node 8 --link-gbps 9 --scale-to 4", "--scale-to 4 is less than a node of 8 GPUs"),
    ],
)
def test_facts_about_links_that_cannot_be_are_refused(capsys, words, complaint):
    from pretrain.cli.main import main

    assert main(["plan", "ul2_1.6b", *words.split()]) == 2
    assert complaint in capsys.readouterr().err


def test_plan_shows_steps_and_where_the_curve_bends():
    words = "plan ul2_1.6b --nodes 4 --gpus-per-node 8 --link-gbps 200 --scale-to 1024".split()
    done = subprocess.run([sys.executable, "-m", "pretrain", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "steps with 200 Gbit/s between nodes and 3600 in them" in shown and "speed-up of the run" in shown
    assert shown.count("bends here") == 1 and shown.count("cannot run so") == 4
