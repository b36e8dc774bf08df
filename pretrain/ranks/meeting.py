"""Where the processes of a launch meet."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from pretrain.errors import TrainingStopped, UserError
from pretrain.files import write_whole
from pretrain.place import Place

MEETING_SECONDS = 120
"""Seconds until the last process must have come; nodes start at different speeds."""


def meet(place: Place, folder: Path, backend: str) -> None:
    """Have all processes know each other: torch.distributed is up when this returns.

    torchrun and people say where (MASTER_ADDR). Else rank 0 takes a port that is free, which no other job on the node can have,
    and announces it to the others: through MPI, or through a file in `folder`, which all nodes see.

    Raises:
        UserError: there are several processes, and nothing that brings them together.
        TrainingStopped: some process did not come in time.
    """
    if place.world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    elif "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, rank=place.rank, world_size=place.world_size)
    elif place.launcher in ("python", "torchrun"):
        raise UserError(
            f"WORLD_SIZE is {place.world_size} and MASTER_ADDR is not set; start the processes with torchrun, srun or mpiexec"
        )
    else:
        store = _store(
            place, _through_mpi if place.launcher == "mpiexec" else lambda address: _through_a_file(place, folder, address)
        )
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)


def _store(place: Place, announce: Callable[[str | None], str]) -> dist.Store:
    waiting = timedelta(seconds=MEETING_SECONDS)
    if place.rank == 0:
        store = dist.TCPStore("0.0.0.0", 0, place.world_size, is_master=True, timeout=waiting, wait_for_workers=False)
        announce(f"{socket.gethostname()}:{store.port}")
        return store
    host, port = announce(None).rsplit(":", 1)
    return dist.TCPStore(host, int(port), place.world_size, is_master=False, timeout=waiting)


def _through_mpi(address: str | None) -> str:
    from mpi4py import MPI

    return MPI.COMM_WORLD.bcast(address)


def _through_a_file(place: Place, folder: Path, address: str | None) -> str:
    file = _meeting_file(folder)
    if address is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, address)
        return address
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        try:
            return file.read_text()
        except FileNotFoundError:
            time.sleep(0.05)
    raise TrainingStopped.on_this_rank(
        f"rank 0 did not write {file} within {MEETING_SECONDS} s; do all nodes share this file system?"
    )


def all_have_met(place: Place, folder: Path) -> None:
    """Remove the file by which ranks met, once everyone has."""
    if place.launcher == "srun" and place.rank == 0:
        _meeting_file(folder).unlink(missing_ok=True)


def _meeting_file(folder: Path) -> Path:
    """Named after job, step and restart, so that no other launch has it."""
    words = [os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    return folder / f".meeting-{'-'.join(words)}"
