"""Threads of a rank, and GPUs that a site shows to one task alone."""

import pytest
import torch

from pretrain.ranks import device as module
from pretrain.ranks.device import choose_device, cpus_of_this_rank
from pretrain.ranks.preflight import ranks_that_share


@pytest.mark.parametrize("words, threads", [("3", 3), ("", 8), ("0", 8), ("many", 8)])
def test_omp_num_threads_is_heeded(monkeypatch, words, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name in ("SLURM_STEP_ID", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", words)
    assert cpus_of_this_rank() == threads


def test_the_1_that_torchrun_sets_is_nobodys_wish(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name, value in {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert cpus_of_this_rank() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpus_of_this_rank() == 3


def test_a_task_that_sees_one_gpu_takes_it_whatever_its_local_rank(monkeypatch):
    monkeypatch.setattr(module.torch.version, "cuda", "13.0")
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda", 0)
    assert module.os.environ["LOCAL_RANK"] == "0", "DeepSpeed chooses by it"


def test_ranks_that_share_a_gpu_are_found():
    assert ranks_that_share(["a", "b", "c"]) == []
    assert ranks_that_share(["a", "b", "c", "b"]) == [1, 3]
