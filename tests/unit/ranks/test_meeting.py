"""Processes that the environment says there are, and that do not come."""

import os
import socket
import subprocess
import sys

import pytest

CODE = """
import sys
from pathlib import Path
from pretrain.errors import TrainingStopped, UserError
from pretrain.place import find_place
from pretrain.ranks import meeting
import os
meeting.MEETING_SECONDS, meeting.QUIET_SECONDS = 3, 1
try:
    meeting.meet(find_place(os.environ), Path(sys.argv[1]), "gloo")
except (UserError, TrainingStopped) as error:
    print(f"{type(error).__name__}: {error}")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def meet(folder, **variables) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PMI", "OMPI", "RANK", "WORLD", "MASTER"))}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder)],
        env={**environment, **{name: str(value) for name, value in variables.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    return out


@pytest.mark.dist
def test_who_is_missing_is_said_after_a_while_and_in_the_end(tmp_path):
    port = free_port()
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 3}
    first, second = (meet(tmp_path, RANK=rank, **where) for rank in (0, 2))
    shown = told(first)
    assert f"waiting for rank 1 of 3 at 127.0.0.1:{port}, where MASTER_ADDR, MASTER_PORT and WORLD_SIZE say so" in shown
    assert "TrainingStopped: rank 1 of 3 did not come within 3 s" in shown and "unset RANK and WORLD_SIZE" in shown
    assert "of 3 did not come within 3 s" in told(second)


@pytest.mark.dist
def test_a_rank_0_that_is_not_there_is_said(tmp_path):
    process = meet(tmp_path, RANK=1, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    assert "TrainingStopped: rank 0 does not answer at 127.0.0.1:" in told(process)


@pytest.mark.dist
def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        process = meet(tmp_path, RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=taken.getsockname()[1])
        assert "TrainingStopped: rank 0 cannot listen at 127.0.0.1:" in told(process)


@pytest.mark.dist
@pytest.mark.parametrize(
    "variables, words",
    [
        ({"MASTER_ADDR": "localhost"}, "MASTER_ADDR is localhost, and MASTER_PORT is not set; give a port, or unset"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, "MASTER_PORT is http"),
        ({}, "WORLD_SIZE is 2 and MASTER_ADDR is not set; unset RANK and WORLD_SIZE"),
    ],
)
def test_variables_that_say_too_little_are_named(tmp_path, variables, words):
    shown = told(meet(tmp_path, RANK=0, WORLD_SIZE=2, **variables))
    assert "UserError: environment: " in shown and words in shown


@pytest.mark.dist
def test_another_mpi_than_the_launchers_is_named_on_every_rank(tmp_path):
    """Open MPI's variables, and the library of another MPI: each process would be alone in its world."""
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    processes = [
        meet(tmp_path, **dict(zip((f"OMPI_COMM_WORLD_{name}" for name in names), (rank, 2, rank, 2)))) for rank in (0, 1)
    ]
    for process in processes:
        assert "mpiexec started 2 processes, and mpi4py (MPICH) sees 1" in told(process)
