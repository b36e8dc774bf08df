"""The allocation that bench.acceptance runs in, the layouts that its tasks can form, and how a part of it is started and
judged."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.observe.metrics import read_rows, training_rows

STEPS = 20
LEARNING_RATE = 3e-4
"""A tenth of the quick start's: its own makes single steps so steep, as a stage begins, that rounding comes out a thousand times
larger."""
PART_SECONDS = 400


@dataclass(frozen=True)
class Layout:
    """How the tasks are used; what is left over is replicas."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def options(self) -> list[str]:
        return ["--parallel.tensor", str(self.tensor), "--parallel.pipeline", str(self.pipeline)]

    def name(self, tasks: int) -> str:
        sizes = {"TP": self.tensor, "PP": self.pipeline, "DP": tasks // (self.tensor * self.pipeline)}
        return "x".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "one"


def layouts(tasks: int, tasks_per_node: int) -> list[Layout]:
    """Those that the tasks can form; tensor ranks over several nodes only if nodes have one task."""
    wanted = [Layout(), Layout(tensor=2), Layout(pipeline=2), Layout(tensor=4), Layout(tensor=2, pipeline=2)]
    widest = max(2, tasks_per_node)
    return [layout for layout in wanted if tasks % (layout.tensor * layout.pipeline) == 0 and layout.tensor <= widest]


@dataclass(frozen=True)
class Part:
    """What came of one part."""

    name: str
    good: bool
    words: str
    """In a line: what was measured, or what went wrong."""
    facts: dict = field(default_factory=dict)
    seconds: float = 0.0


class Failed(Exception):
    """A part did not do what it should; the message says what."""


@dataclass(frozen=True)
class Job:
    """The allocation that this runs in."""

    number: str
    tasks: int
    nodes: int
    out: Path
    device: str
    rounds: int
    """Rounds of path_speed."""
    launcher: Sequence[str]

    @property
    def layouts(self) -> list[Layout]:
        return layouts(self.tasks, self.tasks // self.nodes)

    def start(self, name: str, *words: object, alone: bool = False) -> subprocess.Popen:
        """A step of the job, its output in DIR/NAME.log; on one task if alone."""
        srun, *rest = self.launcher
        few = ["--nodes=1", "--ntasks=1"] if alone else []
        command = [srun, f"--job-name={name}", *few, *rest, *map(str, words)]
        environment = {**os.environ, "PRETRAIN_CACHE": str(self.out / "data")}  # all nodes see that one
        with (self.out / f"{name}.log").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def finish(self, name: str, process: subprocess.Popen, seconds: float = PART_SECONDS) -> None:
        """Wait for a step.

        Raises:
            Failed: it took too long, or ended badly.
        """
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failed(f"took longer than {seconds:g} s; {self.out / name}.log") from None
        if code:
            told = [
                line
                for line in (self.out / f"{name}.log").read_text(errors="replace").splitlines()
                if re.search("error|stopped|Error", line)
            ]
            raise Failed(f"ended with {code}: {told[0].strip() if told else 'no word why'}; {self.out / name}.log")

    def train(self, name: str, layout: Layout, alone: bool = False) -> subprocess.Popen:
        """The quick start's model, in fp32, for a few steps."""
        batch = 2 * self.tasks * -(-8 // self.tasks)  # whatever the layout, replicas divide it, and so do two paths
        sizes = ["--ds.train_batch_size", batch, "--ds.train_micro_batch_size_per_gpu", 1, "--steps", STEPS, "--save-every", 6]
        sizes += ["--ds.optimizer.params.lr", LEARNING_RATE, "--ds.scheduler.params.warmup_num_steps", 5]
        return self.start(
            name,
            "-m",
            "pretrain",
            "train",
            "ul2_tiny",
            "--run-dir",
            self.out / name,
            "--device",
            self.device,
            *sizes,
            *layout.options,
            alone=alone,
        )

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in training_rows(read_rows(self.out / name / "metrics.jsonl"))]
