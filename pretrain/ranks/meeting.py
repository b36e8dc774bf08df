"""Where the processes of a launch meet."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from pretrain.errors import TrainingStopped, UserError, one_line
from pretrain.files import write_whole
from pretrain.place import Place, foreign_mpi

MEETING_SECONDS = 120
"""Seconds until the last process must have come; nodes start at different speeds."""
QUIET_SECONDS = 15
"""Seconds of waiting after which it is said who is waited for."""
LOOK_SECONDS = 0.05
MOST_NAMED = 8


def meet(place: Place, folder: Path, backend: str) -> None:
    """Have all processes know each other: torch.distributed is up when this returns.

    torchrun brings its processes together. People, and some sites, say where (MASTER_ADDR, MASTER_PORT). Else rank 0 takes a port
    that is free, which no other job on the node can have, and announces it to the others: through MPI, or through a file in
    `folder`, which all nodes see.

    Raises:
        UserError: there are several processes, and nothing that brings them together.
        TrainingStopped: some process did not come in time.
    """
    if place.world_size == 1:
        store: dist.Store | None = dist.HashStore()
    elif place.launcher == "torchrun" and "MASTER_ADDR" in os.environ:
        store = None  # the launcher's own
    elif "MASTER_ADDR" in os.environ:
        store = _store_at(place, os.environ["MASTER_ADDR"], _master_port())
    elif place.launcher in ("python", "torchrun"):
        raise UserError(
            f"environment: WORLD_SIZE is {place.world_size} and MASTER_ADDR is not set; unset RANK and WORLD_SIZE to start one"
            " process, or start with torchrun, srun or mpiexec"
        )
    else:
        store = _store_announced(place, _through_mpi if place.launcher == "mpiexec" else _through_a_file, folder)
    try:
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
    except RuntimeError as error:
        raise TrainingStopped.on_this_rank(
            f"rank {place.rank} cannot connect to the others ({one_line(error)}); where nodes have several networks, set"
            " GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the one that they share"
        ) from None


def _master_port() -> int:
    words = os.environ.get("MASTER_PORT", "")
    if not words.isdecimal() or not 0 < int(words) < 2**16:
        raise UserError(
            f"environment: MASTER_ADDR is {os.environ['MASTER_ADDR']}, and MASTER_PORT is {words or 'not set'}; give a port, or"
            " unset MASTER_ADDR, RANK and WORLD_SIZE to start one process"
        )
    return int(words)


def _store_at(place: Place, host: str, port: int) -> dist.Store:
    """Meet at a place that the environment gives."""
    waiting, where = timedelta(seconds=MEETING_SECONDS), f"{host}:{port}"
    try:
        store = dist.TCPStore(host, port, place.world_size, place.rank == 0, waiting, wait_for_workers=False)
    except RuntimeError as error:
        if place.rank == 0:
            raise TrainingStopped.on_this_rank(
                f"rank 0 cannot listen at {where} ({one_line(error)}); is another job, or another process with RANK 0, there?"
                " Choose another MASTER_PORT"
            ) from None
        raise TrainingStopped.on_this_rank(
            f"rank 0 does not answer at {where} after {MEETING_SECONDS} s, where MASTER_ADDR and MASTER_PORT say that"
            f" {place.world_size} processes meet (WORLD_SIZE; this is RANK {place.rank}); start it, or unset these variables to"
            " start one process"
        ) from None
    _await_all(store, place, f"at {where}, where MASTER_ADDR, MASTER_PORT and WORLD_SIZE say so")
    return store


def _store_announced(place: Place, announce: Callable[[Place, Path, str | None], str], folder: Path) -> dist.Store:
    """Meet at a port that rank 0 chooses."""
    waiting = timedelta(seconds=MEETING_SECONDS)
    if place.rank == 0:
        store = dist.TCPStore("0.0.0.0", 0, place.world_size, is_master=True, timeout=waiting, wait_for_workers=False)
        announce(place, folder, f"{socket.gethostname()}:{store.port}")
    else:
        host, port = announce(place, folder, None).rsplit(":", 1)
        store = dist.TCPStore(host, int(port), place.world_size, is_master=False, timeout=waiting)
    _await_all(store, place, f"under {place.launcher}")
    return store


def _await_all(store: dist.Store, place: Place, where: str) -> None:
    """Wait until every rank has come; rank 0 says who is missing after a while, and every rank in the end.

    Raises:
        TrainingStopped: somebody did not come.
    """
    store.set(f"came/{place.rank}", "")
    if store.add("came", 1) == place.world_size:
        store.set("all came", "")
    for seconds in (QUIET_SECONDS, MEETING_SECONDS - QUIET_SECONDS):
        try:
            store.wait(["all came"], timedelta(seconds=seconds))
            return store.set_timeout(default_pg_timeout)  # groups are made through it later, where ranks may be far apart
        except RuntimeError:  # not yet, or rank 0 has left
            if seconds == QUIET_SECONDS and place.rank == 0:
                print(f"waiting for {_missing(store, place)} {where}", flush=True)
    raise TrainingStopped.on_this_rank(
        f"{_missing(store, place)} did not come within {MEETING_SECONDS} s {where}; start all of them, or unset RANK and"
        " WORLD_SIZE to start one process"
    )


def _missing(store: dist.Store, place: Place) -> str:
    """Return which ranks have not come, in words."""
    try:
        ranks = [str(rank) for rank in range(place.world_size) if not store.check([f"came/{rank}"])]
    except RuntimeError:
        return f"some rank of {place.world_size}"
    rest = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
    return f"rank {', '.join(ranks[:MOST_NAMED])}{rest} of {place.world_size}"


def _through_mpi(place: Place, folder: Path, address: str | None) -> str:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.size != place.world_size:
        raise foreign_mpi(place.world_size, world.size, MPI.get_vendor()[0])
    return world.bcast(address)


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
            time.sleep(LOOK_SECONDS)
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
