"""The device of a rank."""

import os
from typing import Literal

import torch

from pretrain.errors import UserError

DeviceName = Literal["auto", "cuda", "cpu"]
"""What `--device` takes."""
DeviceType = Literal["cuda", "cpu"]


def device_type(name: DeviceName) -> DeviceType:
    """Return the type that a name stands for: `auto` is the CPU only where torch is a CPU build."""
    return "cpu" if name == "cpu" or (name == "auto" and torch.version.cuda is None) else "cuda"


def choose_device(name: DeviceName) -> torch.device:
    """Return the device of this rank.

    Raises:
        UserError: cuda is wanted and there is none for it.
    """
    if device_type(name) == "cpu":
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise UserError("--device cuda: this torch is a CPU build; install a CUDA build, or pass --device cpu")
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count == 1 and local:  # the site shows each task its own GPU alone; preflight finds ranks that share one
        os.environ["LOCAL_RANK"] = "0"  # by which DeepSpeed chooses, too
        return torch.device("cuda", 0)
    if local >= count:
        seen = (
            f"{count} GPUs are visible, and this is local rank {local}"
            if count
            else "no GPU is visible to this CUDA build of torch"
        )
        raise UserError(f"{seen}; start no more processes than there are GPUs, check the driver, or pass --device cpu")
    return torch.device("cuda", local)


def require_fp8(device: torch.device) -> None:
    """Raise UserError for a GPU that multiplies nothing in FP8. On a CPU PyTorch does it, slowly: enough to try."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return
    major, minor = torch.cuda.get_device_capability(device)
    raise UserError(
        f"precision fp8 is for GPUs of compute capability 8.9 or more (Ada, Hopper, Blackwell), and"
        f" {torch.cuda.get_device_name(device)} has {major}.{minor}; leave it out"
    )


def cpus_of_this_rank() -> int:
    """Return what OMP_NUM_THREADS says, or this rank's share of the CPUs, and no more than SLURM was asked for: not every site
    binds tasks to theirs."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    asked, by_torchrun = os.environ.get("OMP_NUM_THREADS", ""), "TORCHELASTIC_RUN_ID" in os.environ and local_ranks > 1
    if asked.isdecimal() and int(asked) and not (by_torchrun and asked == "1"):  # 1 is what torchrun sets where nobody has
        return int(asked)
    share = max(1, len(os.sched_getaffinity(0)) // local_ranks)
    under_srun = "SLURM_STEP_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if under_srun and "SLURM_CPUS_PER_TASK" in os.environ:
        return min(share, int(os.environ["SLURM_CPUS_PER_TASK"]))
    return share
