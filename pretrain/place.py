"""How this process was started, and which one it is: under torchrun, srun, mpiexec, or alone."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Launcher = Literal["torchrun", "srun", "mpiexec", "python"]


@dataclass(frozen=True)
class Place:
    """This process among those of its launch."""

    launcher: Launcher
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of its node."""
    local_world_size: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """Variables as torchrun would set them, which libraries read."""
        values = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world_size,
        }
        return {name: str(value) for name, value in values.items()}

    def in_words(self) -> str:
        processes = "one process" if self.world_size == 1 else f"{self.world_size} processes"
        nodes = -(-self.world_size // self.local_world_size)
        return f"{processes}{f' on {nodes} nodes' if nodes > 1 else ''}, started by {self.launcher}"


def this_node(environment: Mapping[str, str]) -> str:
    """Return the node's name as SLURM has it, which may not be the host's own."""
    return environment.get("SLURMD_NODENAME", socket.gethostname())


def find_place(environment: Mapping[str, str]) -> Place:
    """Find it out from what launchers leave in the environment.

    Within a job of SLURM only a step of srun makes a process one of several: the batch script has a rank of its own, which means
    nothing. mpiexec starts its processes by such steps, so that they have SLURM's numbers of the step beside its own.
    """

    def numbers(*names: str) -> list[int] | None:
        return [int(environment[name]) for name in names] if all(name in environment for name in names) else None

    if found := numbers("RANK", "WORLD_SIZE"):
        local = numbers("LOCAL_RANK", "LOCAL_WORLD_SIZE") or [0, 1]
        return Place("torchrun" if "TORCHELASTIC_RUN_ID" in environment else "python", *found, *local)
    if found := numbers(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    ):
        return Place("mpiexec", *found)
    if found := numbers("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"):
        return Place("mpiexec", *found)
    if "SLURM_STEP_ID" in environment and (found := numbers("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        per_node = _tasks_of_node(environment["SLURM_STEP_TASKS_PER_NODE"], int(environment["SLURM_NODEID"]))
        rank, world_size, local_rank = found
        return Place("srun", rank, world_size, local_rank, per_node)
    return Place("python")


def _tasks_of_node(listed: str, node: int) -> int:
    """Read SLURM's list, as `2(x3),1`: two tasks on each of three nodes, one on the fourth."""
    counts: list[int] = []
    for part in listed.split(","):
        count, _, repeated = part.partition("(x")
        counts += [int(count)] * int(repeated.rstrip(")") or 1)
    return counts[node]
