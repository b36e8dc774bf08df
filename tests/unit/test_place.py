"""A process knows which one it is, whoever started it."""

import subprocess
import sys

import pytest

from pretrain.errors import UserError
from pretrain.place import Place, find_place

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}


@pytest.mark.parametrize(
    "environment, place",
    [
        ({}, Place("python")),
        (
            {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            Place("torchrun", 3, 4, 1, 2),
        ),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, Place("srun", 5, 7, 1, 2)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,2,3"}, Place("srun", 5, 7, 1, 3)),
        (
            {
                **SRUN,
                "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
                "TORCHELASTIC_RUN_ID": "x",
                "RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "2",
            },
            Place("torchrun", 0, 2, 0, 2),
        ),
        (
            {
                **SRUN,
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
                "PMI_RANK": "2",
                "PMI_SIZE": "4",
                "MPI_LOCALRANKID": "0",
                "MPI_LOCALNRANKS": "2",
            },
            Place("mpiexec", 2, 4, 0, 2),
        ),  # mpiexec in an allocation
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Place("python")),  # a batch script
        ({"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}, Place("mpiexec", 2, 4, 0, 2)),
        (
            {f"OMPI_COMM_WORLD_{k}": v for k, v in {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}.items()},
            Place("mpiexec", 3, 4, 1, 2),
        ),
    ],
)
def test_every_launcher_is_known(environment, place):
    assert find_place(environment) == place


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK is 'abc', not a number"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK is '', not a number"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "rank 5 of 2 processes"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "rank -1 of 2 processes"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "3 of 2 on this node"),
        (SRUN, "SLURM_STEP_TASKS_PER_NODE and SLURM_NODEID do not say"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(xmany)"}, "SLURM_STEP_TASKS_PER_NODE and SLURM_NODEID do not say"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2"}, "SLURM_STEP_TASKS_PER_NODE and SLURM_NODEID do not say"),
        ({"PMI_RANK": "x", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}, "PMI_RANK is 'x', not a number"),
    ],
)
def test_variables_that_cannot_be_are_named(environment, words):
    with pytest.raises(UserError, match="^environment: ") as told:
        find_place(environment)
    assert words in str(told.value)


def test_the_launch_is_told_in_words():
    assert Place("srun", 5, 8, 1, 4).in_words() == "8 processes on 2 nodes, started by srun"
    assert Place("python").in_words() == "one process, started by python"


@pytest.mark.dist
def test_mpiexec_needs_no_address(project, tmp_path):
    mpiexec = sys.executable.removesuffix("python") + "mpiexec"
    words = [
        sys.executable,
        "-m",
        "pretrain",
        "train",
        project.recipe,
        "--ds-config",
        project.ds,
        "--run-dir",
        tmp_path / "run",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [mpiexec, "-n", "2", *map(str, words), "--parallel.tensor", "2", "--stop-at", "2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes, started by mpiexec" in done.stdout and "ended after step 2 of 20" in done.stdout


def test_threads_are_those_that_slurm_was_asked_for(monkeypatch):
    from pretrain.ranks.device import cpus_of_this_rank

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for name in ("SLURM_STEP_ID", "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert cpus_of_this_rank() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cpus_of_this_rank() == 4
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert cpus_of_this_rank() == 3
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert cpus_of_this_rank() == 4, "torchrun within a task has divided it"
