"""From a process alone to ranks that train together, and back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.config.recipe import Recipe
from pretrain.errors import NodesUnfit, UserError
from pretrain.place import Place, this_node
from pretrain.ranks.device import DeviceName, choose_device, cpus_of_this_rank, device_type, require_fp8
from pretrain.ranks.groups import destroy_groups, make_groups
from pretrain.ranks.meeting import all_have_met, meet
from pretrain.ranks.process import Ranks


@contextmanager
def join(device: DeviceName, place: Place, folder: Path) -> Iterator[Ranks]:
    """Meet the other processes before anything else is done: what only one of them finds wrong can then be reported by all.

    Args:
        folder: a folder that all nodes see.

    Raises:
        UserError: there are no devices for the ranks.
        NodesUnfit: some nodes lack devices that others have.
        TrainingStopped: some process did not come.
    """
    backend = "gloo" if device_type(device) == "cpu" or torch.version.cuda is None else "cpu:gloo,cuda:nccl"
    meet(place, folder, backend)
    # Groups are taken down in a good end alone. NCCL's shutdown is collective: a rank that fails by itself would hang in it,
    # before it has reported why. pretrain/__main__.py ends such a process.
    ranks = Ranks(place.rank, place.world_size, torch.device("cpu"), nodes=[""] * place.world_size)
    dist.all_gather_object(ranks.nodes, this_node(os.environ))
    ranks.device = _choose_together(ranks, device)
    all_have_met(place, folder)
    yield ranks
    dist.destroy_process_group()


@contextmanager
def launch(recipe: Recipe, ranks: Ranks, saves: bool = True) -> Iterator[None]:
    """Set up device, signals and the recipe's groups; take them down again.

    Args:
        saves: whether whoever is inside looks for stop signals, to save first. Else they end the process.

    Raises:
        UserError: the recipe needs another device.
    """
    if recipe.model.attention == "flex" and ranks.device.type != "cuda":
        raise UserError("model.attention flex is for GPUs (it has no backward pass on CPU); pass --model.attention sdpa")
    torch.set_num_threads(recipe.threads or cpus_of_this_rank())
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
        if recipe.deterministic:
            _require_deterministic()
    if recipe.precision == "fp8":
        with ranks.all_or_none():
            require_fp8(ranks.device)
    with ranks.stop_requests.listening() if saves else nullcontext():
        try:
            make_groups(recipe.parallel, recipe.seed, ranks.device)
            yield
        finally:
            if ranks.watchdog is not None:
                ranks.watchdog.close()
        destroy_groups()  # in a good end alone, as in `join`


def _require_deterministic() -> None:
    """Have GPUs give the same bits every time: slower kernels, an error where there is none, and no attention by cuDNN or flash,
    whose backward passes sum in any order. Memory that is never read need not be filled."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)


def _choose_together(ranks: Ranks, name: DeviceName) -> torch.device:
    """Return the device of this rank, once every rank has one.

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
