"""What a run is made with."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "megatron-core", "deepspeed", "numpy", "sentencepiece")


def versions() -> list[str]:
    """Of Python and the packages that decide numbers."""
    return [f"python {platform.python_version()}", *(f"{package} {version(package)}" for package in PACKAGES)]


def commit() -> str:
    """Of this code: of a copy in a run directory, the one that was noted when it was made."""
    home = Path(__file__).parent
    noted = home.parent / "COMMIT"
    if noted.exists():
        return noted.read_text().strip()
    git = subprocess.run(["git", "-C", home, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"
