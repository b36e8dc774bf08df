"""What a run is made with, and on."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from pretrain.errors import UserError

PACKAGES = ("torch", "megatron-core", "deepspeed", "numpy", "sentencepiece")
HOME = Path(__file__).parent.parent
TORCH = ((2, 11), (2, 13))
"""The first and the last torch with which this program has been tested."""
DEEPSPEED = ("0.19.8",)
"""The versions of DeepSpeed whose private parts optim/deepspeed.py knows."""
CODE_LIST = "slurm/code_files.txt"
"""Names of what a run takes along, one a line, from the top of the repository."""


def versions() -> list[str]:
    """Return the versions of Python and of the packages that decide numbers."""
    return [f"python {platform.python_version()}", *(f"{package} {version(package)}" for package in PACKAGES)]


def require_tested_torch(found: str) -> None:
    """Refuse a torch that nobody has tried, as one that a container brings.

    Raises:
        UserError: it is older or newer than those that were tested.
    """
    first, last = TORCH
    if not first <= tuple(map(int, found.split(".")[:2])) <= last:
        raise UserError(
            f"torch {found}: this program is tested with torch {'.'.join(map(str, first))} to {'.'.join(map(str, last))}; install"
            " one of these, as requirements.txt does"
        )


def require_known_deepspeed(found: str) -> None:
    """Refuse a DeepSpeed whose insides may be others.

    Raises:
        UserError: it is none of those that are known to work.
    """
    if found.partition("+")[0] not in DEEPSPEED:
        raise UserError(
            f"deepspeed {found}: this program uses parts of DeepSpeed that change from version to version, and is known to work"
            f" with {', '.join(DEEPSPEED)}; install deepspeed=={DEEPSPEED[-1]}, as requirements.txt does"
        )


def provenance(device_type: str) -> list[str]:
    """Everything that a run is made with: versions, commit, the code's checksum and the device, a line each, its kind first."""
    return [*versions(), f"commit {commit()}", f"code {code_sha256(HOME)}", f"device {device_name(device_type)}"]


def listed_code(listing: str) -> list[str]:
    """Return the names that a listing as CODE_LIST has."""
    return [line for line in listing.splitlines() if line and not line.startswith("#")]


def commit() -> str:
    """Return the commit of this code: of a copy in a run directory, the one that was noted when it was made."""
    noted = HOME / "COMMIT"
    if noted.exists():
        return noted.read_text().strip()
    git = subprocess.run(["git", "-C", HOME, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def code_sha256(home: Path) -> str:
    """Return a checksum of all modules that train, names included; `home` is the repository or a copy of it."""
    digest = hashlib.sha256()
    for file in sorted(path for package in ("pretrain", "tokenizer") for path in (home / package).rglob("*.py")):
        digest.update(f"{file.relative_to(home)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def device_name(device_type: str) -> str:
    """Return the device's name, with the number of cores where it is a CPU."""
    if device_type == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.machine()} ({len(os.sched_getaffinity(0))} cores)"
