"""What a rank that hangs leaves behind."""

import os
import subprocess
import sys

CODE = """
import sys, time, torch
from pathlib import Path
from pretrain.ranks.watchdog import Watchdog
if len(sys.argv) > 2:
    torch._C._distributed_c10d._dump_nccl_trace = lambda: b"the last collectives"
watchdog = Watchdog(Path(sys.argv[1]), 3, 0.2)
watchdog.alive()
time.sleep(60)
"""


def left_behind(folder, *words: str) -> dict[str, bytes]:
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    done = subprocess.run([sys.executable, "-c", CODE, str(folder), *words], timeout=60, env=environment)
    assert done.returncode == 70
    return {file.name: file.read_bytes() for file in (folder / "stacks").iterdir()}


def test_its_stack_and_on_gpus_its_last_collectives(tmp_path):
    """A CPU build has no recorder of NCCL's; one that has is known by the name of the function, which stands in for it here."""
    (tmp_path / "cpu").mkdir()
    ((name, stack),) = left_behind(tmp_path / "cpu").items()
    assert name == "job_7_start_0_rank_00003.txt" and b"most recent call first" in stack
    (tmp_path / "gpu").mkdir()
    found = left_behind(tmp_path / "gpu", "with a recorder")
    assert found["nccl_job_7_start_0_rank_3"] == b"the last collectives", "a name that ends with the rank, as torchfrtrace wants"
    assert '"kind": "hung"' in (tmp_path / "gpu" / "events.jsonl").read_text()
