"""Progress for people: a live bar on a terminal, plain lines in a log."""

from dataclasses import dataclass

from rich.console import Console as Rich
from rich.progress import BarColumn, Progress, TextColumn

from pretrain.config import Run
from pretrain.observe.metrics import MetricsRow


@dataclass(frozen=True)
class Line:
    """One step as a line of text."""

    run: Run
    row: MetricsRow
    eta_seconds: float | None

    def __str__(self) -> str:
        return "  ".join(self.parts())

    def parts(self) -> list[str]:
        row, run = self.row, self.run
        layers = run.recipe.model.num_layers
        whole = row["active_layers"] == layers
        return [
            f"step {row['step']}/{run.steps}",
            f"stage {row['stage']}/{run.method.stages[-1].index} ({row['active_layers']:g} of {layers} layers)",
            f"loss {row['loss']:.4f}" + ("" if whole else " (subnetwork)"),
            f"norm {row['grad_norm']:.2f}",
            f"lr {row['lr']:.1e}",
            f"{short(row['tokens_per_second'])} tok/s",
            f"saved {100 * row['layer_flops_saved']:.0f} %",
            f"eta {clock(self.eta_seconds)}",
        ]


class Console:
    """Prints; on a terminal the current step is a bar that stays at the bottom."""

    def __init__(self, run: Run, first_step: int) -> None:
        self.run = run
        self.rich = Rich(highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        if self.rich.is_terminal:
            self.progress = Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=self.rich)
            self.task = self.progress.add_task("starting", total=run.steps, completed=first_step - 1)
            self.progress.start()

    def step(self, line: Line) -> None:
        step = line.row["step"]
        if self.progress:
            self.progress.update(self.task, completed=step, description=str(line))
        elif step % self.run.recipe.log_every == 0 or step in (1, self.run.steps):
            print(line, flush=True)

    def say(self, text: str) -> None:
        self.rich.print(text) if self.progress else print(text, flush=True)

    def close(self) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None


def short(number: float) -> str:
    """41200 as 41.2k."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def clock(seconds: float | None) -> str:
    """0:42, 1:12:05, or ? when nothing is known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
