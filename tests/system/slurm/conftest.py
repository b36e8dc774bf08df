"""A real SLURM of three nodes on this machine, and jobs on it."""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cluster"
PROJECT = Path(__file__).resolve().parents[3]
SMALL = ("--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10:00")
"""In place of what the scripts ask of a real cluster."""


@dataclass(frozen=True)
class Cluster:
    """The running daemons."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "ROOT": str(self.root),
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *words: str, **how) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(word) for word in words], env=self.environment, capture_output=True, text=True, timeout=120, **how
        )

    def shell(self, line: str) -> str:
        """With the functions of lib.sh."""
        return self.run("bash", "-c", f"source {HERE}/lib.sh; {line}").stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", "-o", job).stdout))

    def wait(self, job: str, *states: str, seconds: float = 150) -> str:
        """Until the job is in one of the states, or has ended."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline = time.time() + seconds
        while time.time() < deadline:
            state = self.facts(job).get("JobState", "")
            if state in wanted:
                return state
            time.sleep(0.2)
        raise AssertionError(f"job {job} is {state}, not {wanted}: {self.facts(job)}")


@pytest.fixture(scope="session")
def cluster():
    if os.geteuid() != 0:
        pytest.skip("no SLURM: starting one takes root")
    if not shutil.which("slurmctld") and not shutil.which("apt-get"):
        pytest.skip("no SLURM: it is not installed, and there is no apt-get to install it with")
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path: sockets lie in it
    root.chmod(0o755)  # munge has a user of its own
    cluster = Cluster(root)
    sizes = {"NNODES": "3", "CPUS": "4", "GPUS": "1", "MEM": "8000", "BASEPORT": str(free_ports(4))}
    log = (root / "start.log").open("w")  # a pipe would stay open in the daemons
    try:
        started = subprocess.run(
            ["bash", HERE / "start.sh"], env={**cluster.environment, **sizes}, stdout=log, stderr=log, timeout=600
        )
        if started.returncode and not shutil.which("slurmctld"):
            pytest.skip(f"no SLURM: apt-get could not install it: {(root / 'start.log').read_text().splitlines()[-1:]}")
        assert started.returncode == 0, (root / "start.log").read_text()
        yield cluster
    finally:  # also when it came up in part
        subprocess.run(["bash", HERE / "stop.sh"], env={**cluster.environment, "PURGE": "1"}, timeout=120)


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody listens on, below those that the system hands out by itself: other tests
    ask it for ports."""
    handed_out_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for first in random.sample(range(10_000, handed_out_from - count), 100):
        with contextlib.ExitStack() as listening:
            try:
                for port in range(first, first + count):
                    listening.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
            return first
    raise AssertionError(f"no {count} free ports in a row below {handed_out_from}")


@dataclass(frozen=True)
class Job:
    """A job of pretrain_ul2.sh, or of another script."""

    cluster: Cluster
    number: str
    run_dir: Path
    log: Path

    def story(self) -> str:
        """For a test that fails."""
        parts = [self.log, self.run_dir / "job.log", self.run_dir / "events.jsonl"]
        return "\n".join(f"--- {part}\n{part.read_text()[-3000:]}" for part in parts if part.exists())

    def wait(self, *states: str, seconds: float = 150) -> str:
        try:
            return self.cluster.wait(self.number, *states, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        deadline, metrics = time.time() + seconds, self.run_dir / "metrics.jsonl"
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert time.time() < deadline, self.story()
            time.sleep(0.02)

    def facts(self) -> dict[str, str]:
        return self.cluster.facts(self.number)

    def nodes(self) -> list[str]:
        return self.cluster.run("scontrol", "show", "hostnames", self.facts()["NodeList"]).stdout.split()

    def signal(self, name: str) -> None:
        """To the batch script, as SLURM sends it before a time limit; to the script alone."""
        self.cluster.run("scancel", "--batch", f"--signal={name}", self.number)


@pytest.fixture
def submit(cluster, project, tmp_path):
    """Submit a script of slurm/ from a folder that has nothing to do with it; what it left is cancelled in the end."""
    jobs = []

    def submit(*options, sbatch=("--nodes=2",), script="pretrain_ul2.sh", name="run", run_dir=None, home=PROJECT) -> Job:
        run_dir = run_dir or tmp_path / name
        words = ["--recipe", project.recipe, "--ds-config", project.ds, "--run-dir", run_dir, "--device", "cpu", *options]
        done = cluster.run("sbatch", "--parsable", *SMALL, *sbatch, home / "slurm" / script, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        number = done.stdout.strip()
        jobs.append(number)
        log = next(word for word in cluster.facts(number)["StdOut"].split())
        return Job(cluster, number, run_dir, Path(log))

    yield submit
    for job in jobs:
        cluster.run("scancel", job)
    for job in jobs:
        cluster.wait(job)
