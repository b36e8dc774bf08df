"""This process among the others: rank, device, groups, and how the run is asked to stop."""

import atexit
import logging
import os
import shutil
import signal
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Callable, Iterator, Literal, TypeVar

import torch
import torch.distributed as dist

from pretrain.config.recipe import Recipe
from pretrain.errors import UserError

T = TypeVar("T")
DeviceName = Literal["auto", "cuda", "cpu"]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass
class Ranks:
    """What a process knows of itself once the groups exist."""

    rank: int
    world_size: int
    device: torch.device
    stop_requested: bool = False
    """A signal asked this process to stop; the others may not know yet."""
    _kept: list[Any] = field(default_factory=list)

    def keep(self, thing: Any) -> None:
        """Hold on to a lock for the life of the process."""
        self._kept.append(thing)

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Handler of the stop signals: the loop ends after its step. A second Ctrl-C does not wait for that."""
        if self.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_requested = True

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_parallel_rank(self) -> int:
        from megatron.core import parallel_state

        return parallel_state.get_data_parallel_rank()

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0, on every rank; or, on every rank, the error that it raised there."""
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [action()]
            except UserError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[0], UserError):
            raise outcome[0]
        return outcome[0]

    def together(self, action: Callable[[], T]) -> T:
        """What `action` gives on this rank, if it ends well on all; if not, the same error on every rank.

        Without it a rank that fails would leave the others waiting in their next collective.
        """
        result, complaint = None, None
        try:
            result = action()
        except UserError as error:
            complaint = str(error)
        complaints: list[str | None] = [None] * self.world_size
        dist.all_gather_object(complaints, complaint)
        failed = [rank for rank, text in enumerate(complaints) if text is not None]
        if failed:
            everywhere = len(set(complaints)) == 1
            raise UserError(("" if everywhere else f"rank {', '.join(map(str, failed))}: ") + str(complaints[failed[0]]))
        return result

    def agree(self, flag: bool) -> bool:
        """True on every rank if it is true on any: a signal reaches some ranks only."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes.item())


def choose_device(name: DeviceName) -> torch.device:
    """The device of this rank. `auto` is the CPU only where torch is a CPU build.

    Raises:
        UserError: cuda is wanted and there is none.
    """
    if name == "cpu" or (name == "auto" and torch.version.cuda is None):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("no GPU is visible to this CUDA build of torch; check the driver, or pass --device cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def prepare_libraries(device: torch.device) -> None:
    """What DeepSpeed reads when it is imported, and silence for notices that tell a user of this program nothing.

    Call it before anything imports DeepSpeed or Megatron-Core.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, also where no launcher set it
    # A killed job leaves a lock in the shared cache, on which the next one would wait for ever.
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        os.environ["TORCH_EXTENSIONS_DIR"] = tempfile.mkdtemp(prefix="torch-extensions-")
        atexit.register(shutil.rmtree, os.environ["TORCH_EXTENSIONS_DIR"], ignore_errors=True)
    warnings.filterwarnings("ignore", module=r"megatron\.")
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)


@contextmanager
def launch(recipe: Recipe, device: torch.device) -> Iterator[Ranks]:
    """Set up process groups, device and signals; take them down again.

    Raises:
        UserError: the recipe needs another device.
    """
    if recipe.model.attention == "flex" and device.type != "cuda":
        raise UserError("model.attention flex is for GPUs (it has no backward pass on CPU); pass --model.attention sdpa")
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(recipe.threads or max(1, len(os.sched_getaffinity(0)) // local_ranks))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, rank=rank, world_size=world_size)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    ranks = Ranks(rank, world_size, device)
    former = {s: signal.signal(s, ranks.request_stop) for s in STOP_SIGNALS}
    try:
        make_groups(recipe, device)
        yield ranks
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        destroy_groups()
        dist.destroy_process_group()


def make_groups(recipe: Recipe, device: torch.device) -> None:
    """Megatron-Core's groups and random states for the recipe's layout. torch.distributed must be up."""
    if device.type == "cpu":
        from pretrain.parallel import cpu

        cpu.install()
    from megatron.core import parallel_state, tensor_parallel

    layout = recipe.parallel
    parallel_state.initialize_model_parallel(
        layout.tensor, layout.pipeline, layout.virtual if layout.virtual > 1 else None
    )
    tensor_parallel.model_parallel_cuda_manual_seed(recipe.seed)


def destroy_groups() -> None:
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
