import time

import pytest
import torch

from pretrain.stopwatch import Stopwatch


def test_waiting_is_left_out_and_only_work_counts():
    watch = Stopwatch(torch.device("cpu"))
    with watch.paused():  # no work is being timed, and none begins
        time.sleep(0.2)
    assert watch.read_and_reset() == 0
    for _ in range(2):
        with watch.running():
            time.sleep(0.02)
            with watch.paused():
                time.sleep(0.5)
            time.sleep(0.02)
    assert 0.08 <= watch.read_and_reset() < 0.5
    assert watch.read_and_reset() == 0


def test_work_that_fails_leaves_a_stopwatch_that_can_go_on():
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(KeyError), watch.running(), watch.paused():
        raise KeyError
    with watch.running():
        pass
    assert watch.read_and_reset() >= 0
