"""Before a run: are the nodes alike and fit, and do the groups of ranks work?

A node that is not fit is named, and remembered by the job, which is queued again without it.
"""

import os
import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.errors import NodesUnfit, TrainingStopped, UserError, reason
from pretrain.ranks.process import Ranks
from pretrain.ranks.watchdog import Watchdog
from pretrain.versions import versions

SECONDS = 300.0
"""Longest that one of the checks may take: on many nodes the first sum over a group takes a while to be set up."""
FREE = 0.9
"""Share of a GPU's memory that must be free; else somebody else's process is on it."""
LEAST_SPACE = 2**30
"""Bytes free where the run directory is, below which a warning is given; a checkpoint is checked for its own size."""


def preflight(ranks: Ranks, run_dir: Path) -> None:
    """Check nodes and groups; called on all ranks when the groups exist.

    Raises:
        UserError: ranks share a GPU.
        NodesUnfit: some nodes are not fit.
        TrainingStopped: a group of ranks does not work.
    """
    watchdog = Watchdog(run_dir, ranks.rank, SECONDS)
    watchdog.alive()
    try:
        _require_own_gpus(ranks)
        unfit = ranks.complaints_by_node(_versions(ranks) or _memory(ranks) or _write_access(run_dir))
        if unfit:
            raise NodesUnfit(unfit, ranks.nodes)
        _groups(ranks, watchdog)
        if ranks.is_main and (free := shutil.disk_usage(run_dir).free) < LEAST_SPACE:
            print(f"WARNING: {run_dir}: {free / 2**20:.0f} MiB free there", flush=True)
    finally:
        watchdog.close()


def _require_own_gpus(ranks: Ranks) -> None:
    if ranks.device.type != "cuda":
        return
    everyone: list[str] = [""] * ranks.world_size
    dist.all_gather_object(everyone, str(torch.cuda.get_device_properties(ranks.device).uuid))
    if shared := ranks_that_share(everyone):
        raise UserError(
            f"ranks {', '.join(map(str, shared))} on {ranks.nodes[shared[0]]} have one GPU between them; start one process for"
            " each GPU, or ask for as many GPUs as tasks"
        )


def ranks_that_share(gpus: Sequence[str]) -> list[int]:
    """Return the ranks of the first GPU that several have; none if each has its own.

    Args:
        gpus: the unique name of each rank's.
    """
    gpu = next((gpu for gpu, count in Counter(gpus).items() if count > 1), None)
    return [rank for rank, own in enumerate(gpus) if own == gpu]


def _versions(ranks: Ranks) -> str | None:
    """What this node has that most ranks have not."""
    mine = tuple(versions())
    everyone: list[tuple[str, ...]] = [()] * ranks.world_size
    dist.all_gather_object(everyone, mine)
    usual = Counter(everyone).most_common(1)[0][0]
    other = [f"{ours} instead of {theirs}" for ours, theirs in zip(mine, usual) if ours != theirs]
    return f"has {', '.join(other)}" if other else None


def _memory(ranks: Ranks) -> str | None:
    if ranks.device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(ranks.device)
    return f"only {free / 2**30:.0f} of {total / 2**30:.0f} GiB of {ranks.device} are free" if free < FREE * total else None


def _write_access(run_dir: Path) -> str | None:
    file = run_dir / f".written_by_{socket.gethostname()}_{os.getpid()}"
    try:
        file.write_text("")
        file.unlink()
    except OSError as error:
        return f"cannot write to {run_dir} ({reason(error)})"
    return None


def _groups(ranks: Ranks, watchdog: Watchdog) -> None:
    """A sum over every group that training will use; one that hangs is the watchdog's to find."""
    groups = {
        "tensor": parallel_state.get_tensor_model_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
        "data": parallel_state.get_data_parallel_group(),
        "whole": dist.group.WORLD,
    }
    for name, group in groups.items():
        one = torch.ones(1, device=ranks.device)
        dist.all_reduce(one, group=group)
        watchdog.alive()
        if int(one) != dist.get_world_size(group):
            raise TrainingStopped(
                f"a sum over the {name} group of rank {ranks.rank} gives {int(one)} instead of {dist.get_world_size(group)}"
            )
