"""Starting real processes."""

import subprocess
import sys
from pathlib import Path


def torchrun(processes: int, module: str, *words: str, **how) -> subprocess.Popen:
    """Start `module` in so many processes on this machine; output is kept apart by stream."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
    return subprocess.Popen([*launcher, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def pretrain(project, run_dir: Path, processes: int, *words: str) -> subprocess.Popen:
    """Start `python -m pretrain train` on a test project."""
    return torchrun(processes, "pretrain", "train", project.recipe, "--ds-config", project.ds, "--run-dir", run_dir, *words)
