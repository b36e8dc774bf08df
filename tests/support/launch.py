"""Starting real processes."""

import subprocess
import sys
from pathlib import Path

import psutil


def torchrun(processes: int, module: str, *words: str, **how) -> subprocess.Popen:
    """Start `module` in so many processes on this machine; output is kept apart by stream. Without one, words say what to
    start."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*launcher, *(["-m", module] if module else []), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def ranks_of(launcher: subprocess.Popen) -> dict[int, psutil.Process]:
    """The training processes that a launcher has started, by rank."""
    ranks = {}
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if "pretrain" in child.cmdline() and "RANK" in (environment := child.environ()):
            ranks[int(environment["RANK"])] = child
    return ranks


def pretrain(project, run_dir: Path, processes: int, *words: str) -> subprocess.Popen:
    """Start `python -m pretrain train` on a test project."""
    return torchrun(processes, "pretrain", "train", project.recipe, "--ds-config", project.ds, "--run-dir", run_dir, *words)
