"""This process among the others: rank, device, groups, and how the run is asked to stop."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from pretrain.config.recipe import Recipe
from pretrain.errors import NodesUnfit, TrainingStopped, UserError
from pretrain.parallel.caches import prepare_caches
from pretrain.parallel.meeting import meet, parted
from pretrain.parallel.watchdog import Watchdog
from pretrain.place import Place, this_node

T = TypeVar("T")
DeviceName = Literal["auto", "cuda", "cpu"]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass
class Ranks:
    """What a process knows of itself once it has joined the others."""

    rank: int
    world_size: int
    device: torch.device
    signals: list[signal.Signals] = field(default_factory=list)
    """That asked this process to stop; the others may not know yet."""
    stopped_by: str | None = None
    """Name of the signal by which all ranks have agreed to stop."""
    watchdog: Watchdog | None = None
    nodes: list[str] = field(default_factory=lambda: [this_node(os.environ)])
    """The name of every rank's node."""
    _kept: list[Any] = field(default_factory=list)

    def keep(self, thing: Any) -> None:
        """Hold on to a lock for the life of the process."""
        self._kept.append(thing)

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Handler of the stop signals: the loop ends after its step. A second Ctrl-C does not wait for that."""
        if self.signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signals.append(signal.Signals(number))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_parallel_rank(self) -> int:
        from megatron.core import parallel_state

        return parallel_state.get_data_parallel_rank()

    @property
    def needs_text(self) -> bool:
        """The first pipeline rank reads tokens and the last one labels; those between need neither."""
        from megatron.core import parallel_state

        return parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0, on every rank; or, on every rank, the error that it raised there."""
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [action()]
            except (UserError, OSError) as error:
                outcome = [_as_told(error)]
        dist.broadcast_object_list(outcome)
        self._alive()
        if isinstance(outcome[0], (UserError, TrainingStopped)):
            raise outcome[0]
        return outcome[0]

    def together(self, action: Callable[[], T]) -> T:
        """What `action` gives on this rank, if it ends well on all; if not, the same error on every rank.

        Without it a rank that fails would leave the others waiting in their next collective.
        """
        result, complaint = None, None
        try:
            result = action()
        except (UserError, OSError) as error:
            complaint = _as_told(error)
        complaints: list[Exception | None] = [None] * self.world_size
        dist.all_gather_object(complaints, complaint)
        self._alive()
        failed = [rank for rank, told in enumerate(complaints) if told is not None]
        if failed:
            first = complaints[failed[0]]
            everywhere = len({str(told) for told in complaints}) == 1
            raise type(first)(("" if everywhere else f"rank {', '.join(map(str, failed))}: ") + str(first))
        return result

    def complaints_by_node(self, complaint: str | None) -> dict[str, str]:
        """The first complaint of each node's ranks, on every rank; empty if there is none."""
        told: list[str | None] = [None] * self.world_size
        dist.all_gather_object(told, complaint)
        return {node: why for node, why in reversed(list(zip(self.nodes, told))) if why is not None}

    def asked_to_stop(self) -> bool:
        """True on every rank if a signal has reached any of them."""
        soon, now = self.any(signal.SIGUSR1 in self.signals, any(number != signal.SIGUSR1 for number in self.signals))
        # USR1 comes before a time limit, and asks to go on later; whoever sends another one does not.
        self.stopped_by = "SIGTERM" if now else "SIGUSR1" if soon else None
        return soon or now

    def any(self, *flags: bool) -> list[bool]:
        """Each flag is true on every rank if it is true on any. To be called by all ranks once a step at least."""
        self._alive()
        if self.world_size == 1:
            return list(flags)
        votes = torch.tensor([int(flag) for flag in flags], device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def _alive(self) -> None:
        if self.watchdog is not None:
            self.watchdog.alive()


def _as_told(error: UserError | OSError) -> UserError | TrainingStopped:
    """As ranks pass it on to each other; an OSError comes of the machine, and may be gone on the next try."""
    return error if isinstance(error, UserError) else TrainingStopped(f"{error.filename or 'a file'}: {error.strerror}")


def device_type(name: DeviceName) -> Literal["cuda", "cpu"]:
    """`auto` is the CPU only where torch is a CPU build."""
    return "cpu" if name == "cpu" or (name == "auto" and torch.version.cuda is None) else "cuda"


def choose_device(name: DeviceName) -> torch.device:
    """The device of this rank.

    Raises:
        UserError: cuda is wanted and there is none for it.
    """
    if device_type(name) == "cpu":
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise UserError("--device cuda: this torch is a CPU build; install a CUDA build, or pass --device cpu")
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        seen = (
            f"{count} GPUs are visible, and this is local rank {local}"
            if count
            else "no GPU is visible to this CUDA build of torch"
        )
        raise UserError(f"{seen}; start no more processes than there are GPUs, check the driver, or pass --device cpu")
    return torch.device("cuda", local)


def choose_device_together(ranks: Ranks, name: DeviceName) -> torch.device:
    """The device of this rank, once every rank has one.

    Raises:
        UserError: every node lacks one: they were asked for wrongly.
        NodesUnfit: other nodes have what some lack.
    """
    device, complaint = torch.device("cpu"), None
    try:
        device = choose_device(name)
    except UserError as error:
        complaint = str(error)
    unfit = ranks.complaints_by_node(complaint)
    if unfit and len(unfit) == len(set(ranks.nodes)):
        raise UserError(next(iter(unfit.values())))
    if unfit:
        raise NodesUnfit(unfit, ranks.nodes)
    return device


def prepare_libraries(device: Literal["cuda", "cpu"]) -> None:
    """What DeepSpeed reads when it is imported, and silence for notices that tell a user of this program nothing.

    Call it before anything imports DeepSpeed or Megatron-Core.
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, also where no launcher set it
    prepare_caches()
    warnings.filterwarnings("ignore", module=r"megatron\.")
    # Megatron-Core and DeepSpeed use these; the new names came with torch 2.13, and ours begins with 2.11.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)


@contextmanager
def join(device: DeviceName, place: Place, folder: Path) -> Iterator[Ranks]:
    """Meet the other processes before anything else is done: what only one of them finds wrong can then be told by all.

    Args:
        folder: that all nodes see.

    Raises:
        UserError: there are no devices for the ranks.
        NodesUnfit: some nodes lack devices that others have.
        TrainingStopped: some process did not come.
    """
    backend = "gloo" if device_type(device) == "cpu" or torch.version.cuda is None else "cpu:gloo,cuda:nccl"
    meet(place, folder, backend)
    try:
        ranks = Ranks(place.rank, place.world_size, torch.device("cpu"), nodes=[""] * place.world_size)
        dist.all_gather_object(ranks.nodes, this_node(os.environ))
        ranks.device = choose_device_together(ranks, device)
        parted(place, folder)
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def launch(recipe: Recipe, ranks: Ranks) -> Iterator[None]:
    """Set up device, signals and the recipe's groups; take them down again.

    Raises:
        UserError: the recipe needs another device.
    """
    if recipe.model.attention == "flex" and ranks.device.type != "cuda":
        raise UserError("model.attention flex is for GPUs (it has no backward pass on CPU); pass --model.attention sdpa")
    torch.set_num_threads(recipe.threads or cpus_of_this_rank())
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    former = {s: signal.signal(s, ranks.request_stop) for s in STOP_SIGNALS}
    try:
        make_groups(recipe, ranks.device)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if ranks.watchdog is not None:
            ranks.watchdog.close()
        destroy_groups()


def cpus_of_this_rank() -> int:
    """Its share of those that the process may use, and no more than SLURM was asked for: not every site binds tasks to theirs."""
    share = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    under_srun = "SLURM_STEP_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    return min(share, int(os.environ["SLURM_CPUS_PER_TASK"])) if under_srun and "SLURM_CPUS_PER_TASK" in os.environ else share


def make_groups(recipe: Recipe, device: torch.device) -> None:
    """Megatron-Core's groups and random states for the recipe's layout. torch.distributed must be up."""
    if device.type == "cpu":
        from pretrain.parallel import cpu

        cpu.install()
    from megatron.core import parallel_state, tensor_parallel

    layout = recipe.parallel
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline, layout.virtual if layout.virtual > 1 else None)
    tensor_parallel.model_parallel_cuda_manual_seed(recipe.seed)


def destroy_groups() -> None:
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
