"""How this process was started, and which one it is: under torchrun, srun, mpiexec, or alone."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pretrain.errors import UserError

OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
OF_LAUNCHERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_", "MASTER_", "TORCHELASTIC_",
    "PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID",
)  # fmt: skip
"""How the variables begin by which launchers tell a process its place."""
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

    Raises:
        UserError: a variable is no number, or they contradict one another.
    """

    def numbers(*names: str) -> list[int] | None:
        return [_number(environment, name) for name in names] if all(name in environment for name in names) else None

    if found := numbers("RANK", "WORLD_SIZE"):
        local = numbers("LOCAL_RANK", "LOCAL_WORLD_SIZE") or [0, 1]
        place = Place("torchrun" if "TORCHELASTIC_RUN_ID" in environment else "python", *found, *local)
        return _sensible(place, "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE")
    if found := numbers(*OPEN_MPI):
        return _sensible(Place("mpiexec", *found), ", ".join(OPEN_MPI))
    if found := numbers(*MPICH):
        return _sensible(Place("mpiexec", *found), ", ".join(MPICH))
    if "SLURM_STEP_ID" in environment and (found := numbers("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        rank, world_size, local_rank = found
        return _sensible(Place("srun", rank, world_size, local_rank, _tasks_of_this_node(environment)), "SLURM's of the step")
    return Place("python")


def rank_here(environment: Mapping[str, str]) -> int:
    """Return the rank of this process; 0 where the environment makes no sense, which is said elsewhere."""
    try:
        return find_place(environment).rank
    except UserError:
        return 0


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that none of the launchers around this one has started."""
    return {name: value for name, value in environment.items() if not name.startswith(OF_LAUNCHERS)}


def foreign_mpi(started: int, seen: int, library: str) -> UserError:
    """Return what to say where mpiexec is of another MPI than the library, so that each process is alone in its world."""
    return UserError(
        f"environment: mpiexec started {started} processes, and mpi4py ({library}) sees {seen}: it is another MPI than mpiexec's;"
        " use the mpiexec of the same one, or torchrun to train"
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UserError(
            f"environment: {name} is {environment[name]!r}, not a number; unset it, or start with torchrun, srun or mpiexec"
        ) from None


def _sensible(place: Place, names: str) -> Place:
    """Check that a place can be; `names` are the variables that it comes from."""
    if 0 <= place.rank < place.world_size and 0 <= place.local_rank < place.local_world_size <= place.world_size:
        return place
    raise UserError(
        f"environment: rank {place.rank} of {place.world_size} processes, {place.local_rank} of {place.local_world_size} on this"
        f" node, cannot be (variables {names}); unset them to start one process, or start with torchrun, srun or mpiexec"
    )


def _tasks_of_this_node(environment: Mapping[str, str]) -> int:
    """Read SLURM's list, as `2(x3),1`: two tasks on each of three nodes, one on the fourth."""
    listed, counts = environment.get("SLURM_STEP_TASKS_PER_NODE", ""), []
    try:
        for part in listed.split(","):
            count, _, repeated = part.partition("(x")
            counts += [int(count)] * int(repeated.rstrip(")") or 1)
        return counts[int(environment["SLURM_NODEID"])]
    except (ValueError, KeyError, IndexError):
        raise UserError(
            "environment: SLURM_STEP_ID is set, but SLURM_STEP_TASKS_PER_NODE and SLURM_NODEID do not say how many tasks this"
            " node has; start with srun, or unset SLURM_STEP_ID to start one process"
        ) from None
