"""Writes a run's rows, to dashboards too, progress and report. Rank 0 does; on other ranks it only measures."""

import resource
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from pretrain.config import Run
from pretrain.config.run import Position
from pretrain.cost.flops import expected_cost
from pretrain.observe.console import Console, Line
from pretrain.observe.dashboards import Dashboards
from pretrain.observe.metrics import MetricsFile, MetricsRow
from pretrain.results import Evaluation, StepResult, TaskMean
from pretrain.subnetwork import LayerPath

RECENT = 20
"""Steps over which the pace is measured."""


class Observer:
    """Watches the loop of one rank."""

    def __init__(
        self, run: Run, directory: Path, is_main: bool, device: torch.device, nodes: Sequence[str], start: Position
    ) -> None:
        """nodes: the name of every rank's."""
        self.run, self.directory, self.device, self.nodes, self.start = run, directory, device, nodes, start
        self.shape = run.recipe.shape
        self.pace: deque[float] = deque(maxlen=RECENT)
        self._mark = time.perf_counter()
        self._data_seconds: deque[float] = deque()
        """Seconds of steps that have been begun and are not through."""
        self.is_main = is_main
        if not is_main:
            return
        self.metrics = MetricsFile(directory / "metrics.jsonl", start.step)
        self._there = self.metrics.evaluated
        """Rows of evaluations that the step resumed after has, in their order: each is written once."""
        self.layers_run = self._layers_run_before(start.step)
        self.dashboards = Dashboards(run, directory, start.step)
        self.console = Console(run, start.step + 1)

    def lacks_evaluation(self) -> bool:
        """Whether the step that the run resumes after was to be evaluated, and has no row of that; asked on rank 0."""
        step, last = self.start.step, self.metrics.last_row
        if last is None or last["step"] != step or not self.run.evaluates(step):
            return False
        return self._there < self.run.evaluations(step)

    def data_ready(self) -> None:
        """Called when a step's batch has arrived; a step begins where the one before ended."""
        self._data_seconds.append(time.perf_counter() - self._mark)

    def step(self, step: int, result: StepResult, paths: Sequence[LayerPath]) -> None:
        """Called when the result of `step` has arrived; on a GPU the next one has been begun by then, and the time between two
        results is that of a step."""
        seconds = time.perf_counter() - self._mark
        self._mark = time.perf_counter()
        data_seconds = self._data_seconds.popleft()
        if not self.is_main:
            return
        run, layers = self.run, self.run.recipe.model.num_layers
        ran = sum(self.shape.layers_of(path) for path in paths)
        self.layers_run += ran
        operations = self.shape.training(ran / len(paths), run.tokens_per_step)
        self.pace.append(seconds / operations)
        row = {
            "step": step,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "tokens": run.position(self.start, step).samples * run.recipe.data.sequence_length,
            "target_tokens": result.targets,
            "stage": run.method.stage(step).index,
            "active_layers": round(ran / len(paths), 6),
            "layer_flops_saved": 1 - self.layers_run / (step * len(paths) * layers),
            "step_seconds": round(seconds, 6),
            "data_seconds": round(data_seconds, 6),
            "tokens_per_second": round(run.tokens_per_step / seconds, 1),
            "tflops_per_gpu": operations / seconds / run.world_size / 1e12,
            "peak_memory_gib": round(peak_memory_gib(self.device), 3),
            "restart": self.metrics.restarts,
            **slowest(result.forward_seconds, self.nodes),
        }
        self._record(row)
        self.console.step(Line(run, row, self._eta(step)))

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Called with the loss on held-out text, all layers active; its time belongs to no step."""
        self._mark = time.perf_counter()
        if not self.is_main or self._is_there(step):
            return
        modes = {f"eval_loss_{mode.strip('[]').lower()}": value for mode, value in result.by_mode.items()}
        denoisers = {f"eval_loss_{name}": value for name, value in result.by_denoiser.items()}
        sources = (
            {f"eval_loss_source_{name}": value for name, value in result.by_source.items()} if len(result.by_source) > 1 else {}
        )
        self._record({"step": step, "eval_loss": result.loss, **modes, **denoisers, **sources})
        shown = {
            **(result.by_mode or (result.by_denoiser if len(result.by_denoiser) > 1 else {})),
            **(result.by_source if sources else {}),
        }
        parts = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        count = self.run.method.whole(step).length
        which = "all layers" if count == self.run.recipe.model.num_layers else f"the {count} layers there are"
        self.console.say(f"step {step}/{self.run.steps}  held-out loss {result.loss:.4f} ({which})  {parts}".rstrip())

    def parts(self, step: int, results: Mapping[str, Evaluation], agreement: Mapping[str, float]) -> None:
        """Called with the losses on held-out text of parts of the model, by the part's name, and with the share of targets at
        which each part's likeliest token is the whole model's."""
        self._mark = time.perf_counter()
        if self.is_main and not self._is_there(step):
            losses = {f"eval_loss_{name}": result.loss for name, result in results.items()}
            self._record({"step": step, **losses, **{f"agreement_{name}": share for name, share in agreement.items()}})

    def tasks(self, step: int, results: Mapping[str, Mapping[str, TaskMean]], seconds: float) -> None:
        """Called with the metrics of tasks, by task and metric, and how long they took; that belongs to no step.

        The first metric of each is shown.
        """
        self._mark = time.perf_counter()
        if not self.is_main or self._is_there(step):
            return
        flat = {f"task_{task}_{name}": mean.mean for task, means in results.items() for name, mean in means.items()}
        self._record({"step": step, "task_seconds": round(seconds, 3), **flat})
        shown = []
        for task, means in results.items():
            name, mean = next(iter(means.items()))
            half = "" if mean.error is None else f" ± {1.96 * mean.error:.3f}"
            shown.append(f"{task} {mean.mean:.3f}{half} ({name.replace('_', ' ')})")
        self.console.say(f"step {step}/{self.run.steps}  tasks in {seconds:.1f} s: {'  '.join(shown)}")

    def _is_there(self, step: int) -> bool:
        """Whether the run resumed after this step, and the row that is due is there already."""
        if step != self.start.step or not self._there:
            return False
        self._there -= 1
        return True

    def saved(self, step: int) -> None:
        """Called when a checkpoint has been begun, or layers were copied from one; the time that the loop waited for it belongs
        to no step."""
        if self.is_main:
            self.dashboards.saved()
        self._mark = time.perf_counter()

    def close(self) -> None:
        """Whatever ended the loop."""
        if self.is_main:
            self.console.close()
            self.metrics.close()
            self.dashboards.close()

    def ended(self, step: int) -> None:
        """Called when the loop has ended well after `step`, which is saved; a finished run gets its report."""
        if not self.is_main:
            return
        self.console.close()
        if step >= self.run.steps:
            from pretrain.observe.report import write_report  # loads matplotlib, which nothing else here needs

            print(write_report(self.run, self.directory), flush=True)
        elif step == 0:
            print("what the run begins with is saved as step 0; the same command without --stop-at trains on", flush=True)
        elif step == self.start.step:
            print(
                f"nothing to do: the run already stands at step {step} of {self.run.steps}, where --stop-at ends it; give a"
                " later step, or leave it out, to train on",
                flush=True,
            )
        else:
            print(f"ended after step {step} of {self.run.steps}; the same command resumes", flush=True)

    def _record(self, row: MetricsRow) -> None:
        self.metrics.append(row)
        self.dashboards.record(row)

    def _layers_run_before(self, step: int) -> float:
        """Layers run up to `step`, summed over paths; the row of that step holds it as a fraction of a whole number, but where
        parts of layers run."""
        row, method = self.metrics.last_row, self.run.method
        if row is not None and row["step"] == step:
            ran = (1 - row["layer_flops_saved"]) * step * len(method.paths(step)) * self.run.recipe.model.num_layers
            partly = any(method.width(stage.first_step, stage.last_step) != (1.0, 1.0) for stage in method.stages)
            return ran if partly else round(ran)
        return sum(self.shape.layers_of(path) for earlier in range(1, step + 1) for path in method.paths(earlier))

    def _eta(self, step: int) -> float | None:
        """Remaining operations at the recent pace: later stages take longer a step, and the estimate knows it."""
        if len(self.pace) < 2:
            return None
        remaining = 0.0
        for stage in self.run.method.stages:
            first = max(step + 1, stage.first_step)
            if first <= stage.last_step:
                rest = replace(stage, first_step=first)
                active = float(expected_cost(self.run.method, rest, self.shape))
                remaining += (stage.last_step - first + 1) * self.shape.training(active)
        return median(self.pace) * remaining * self.run.tokens_per_step


def slowest(seconds: Sequence[float], nodes: Sequence[str]) -> MetricsRow:
    """The rank that took longest for its own work, and how much longer than the median rank; nothing if there is one rank, or if
    none is through with any."""
    if len(seconds) == 1 or median(seconds) == 0:
        return {}
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    return {"slowest_rank": rank, "slowest_node": nodes[rank], "slowest_over_median": round(seconds[rank] / median(seconds), 4)}


def peak_memory_gib(device: torch.device) -> float:
    """Most memory in use at a time since the start: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
