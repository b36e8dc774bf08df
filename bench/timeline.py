"""One step on a slow link, drawn from a real run: which layer computes, is sent, wakes, sleeps.

    python -m bench.timeline [--mbit 400] [--out docs/images/step_timeline.png] [options of train]

Needs what bench.link needs. The picture is of the first replica, a step with half of the layers.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from bench.arguments import positive
from bench.link import HOME, OVERLAP, planned, replicas
from bench.namespaces import link, why_not

if TYPE_CHECKING:
    from pretrain.engine import Engine

KINDS = {
    "make up": ("make up for missed updates", "tab:purple"),
    "gather": ("gather weights", "tab:green"),
    "forward": ("forward", "tab:blue"),
    "backward": ("backward", "tab:cyan"),
    "sum": ("sum gradients", "tab:orange"),
    "update": ("update", "tab:red"),
}
TOLD = ["--ds.zero_optimization.reduce_scatter", "false"]
"""Gloo sends as much either way, and only of an all-reduce it tells when it is through."""
OUTSIDE = -1
"""Number of what is outside layers."""


class Recorder:
    """Seconds at which things begin and end on this rank, while it is called for."""

    def __init__(self, engine: "Engine") -> None:
        self.spans: list[dict[str, Any]] = []
        self.is_on = False
        self._forward: dict[int, float] = {}
        self._under_way: list[tuple[str, list[int], float, dist.Work]] = []
        Thread(target=self._watch, daemon=True).start()
        optimizer, (chunk,) = engine.optimizer, engine.model.chunks
        for layer in chunk.decoder.layers:  # type: ignore[union-attr]
            layer.register_forward_pre_hook(self._enter)
            layer.register_forward_hook(self._leave, with_kwargs=True)
        wire = optimizer.wire  # type: ignore[attr-defined]
        wire.start_sum = self._sent("sum", wire.start_sum)
        wire.start_gather = self._sent("gather", wire.start_gather)
        optimizer._make_up = self._timed("make up", optimizer._make_up)  # type: ignore[attr-defined]
        optimizer.adamw.step = self._timed("update", optimizer.adamw.step)  # type: ignore[attr-defined]

    def note(self, kind: str, layers: Sequence[int], begin: float, end: float) -> None:
        if self.is_on:
            self.spans.append({"kind": kind, "layers": list(layers), "begin": begin, "end": end})

    def _enter(self, layer: Any, args: Any) -> None:
        self._forward[layer.layer_number - 1] = time.perf_counter()

    def _leave(self, layer: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        number = layer.layer_number - 1
        if not inputs["attention_mask"].path.active[number]:
            return
        self.note("forward", [number], self._forward[number], time.perf_counter())
        if output[0].requires_grad:
            output[0].register_hook(partial(self._way_back, number, list(layer.parameters())))

    def _way_back(self, number: int, weights: list[Any], gradient: Any) -> None:
        """A layer's backward pass ends with the last of its gradients."""
        begin = time.perf_counter()
        left = len(weights)
        handles: list[Any] = []

        def done(weight: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.note("backward", [number], begin, time.perf_counter())
                for handle in handles:
                    handle.remove()

        handles += [weight.register_post_accumulate_grad_hook(done) for weight in weights]

    def _sent(self, kind: str, start: Callable) -> Callable:
        @wraps(start)
        def started(bundle: Any) -> Any:
            begin, transfer = time.perf_counter(), start(bundle)
            layers = sorted({OUTSIDE if piece.group.layer is None else piece.group.layer for piece in bundle})
            self._under_way.append((kind, layers, begin, transfer._handle))
            return transfer

        return started

    def _watch(self) -> None:
        """Look for messages that have arrived: gloo does not say so of itself."""
        while True:
            for message in list(self._under_way):
                kind, layers, begin, handle = message
                if handle.is_completed():
                    self._under_way.remove(message)
                    self.note(kind, layers, begin, time.perf_counter())
            time.sleep(0.002)

    def _timed(self, kind: str, call: Callable) -> Callable:
        @wraps(call)
        def timed(*args: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args)
            if kind == "update" or time.perf_counter() - begin > 1e-4:  # else nothing was missed
                self.note(kind, [OUTSIDE] if kind == "update" else list(args), begin, time.perf_counter())
            return result

        return timed


def draw(spans: list[dict[str, Any]], layers: int, title: str, out: Path) -> None:
    """Layers from the bottom up, time from left to right. A message is drawn from when the link was free for it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    figure, axes = pyplot.subplots(figsize=(11, 5), dpi=100, layout="constrained")
    began, link_free = min(span["begin"] for span in spans), 0.0
    ran = {layer for span in spans if span["kind"] == "forward" for layer in span["layers"]}
    for span in sorted(spans, key=lambda span: span["end"]):
        begin = span["begin"]
        is_message = span["kind"] in ("sum", "gather")
        if is_message:
            begin, link_free = max(begin, link_free), span["end"]
        label, colour = KINDS[span["kind"]]
        for layer in span["layers"]:
            low = layer - (0.4 if is_message else 0.0)
            axes.broken_barh([((begin - began) * 1000, (span["end"] - begin) * 1000)], (low, 0.4), color=colour)
    for layer in set(range(layers)) - ran:
        axes.text(0, layer, " sleeps", va="center", color="grey")
    axes.set(title=title, xlabel="milliseconds", xlim=(0, None))
    axes.set_yticks([OUTSIDE, *range(layers)], ["outside layers", *(f"layer {n}" for n in range(layers))])
    figure.legend(
        handles=[Patch(color=colour, label=label) for label, colour in KINDS.values()], loc="outside lower center", ncols=6
    )
    figure.savefig(out, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--mbit", type=positive, default=400, help="rate of the link in each direction; 400")
    parser.add_argument("--out", type=Path, default=HOME.parent / "docs/images/step_timeline.png")
    args, options = parser.parse_known_args()
    if (problem := why_not()) is not None:
        sys.exit(f"error: {problem}")
    planned([*OVERLAP, *TOLD, *options])
    with link(args.mbit) as names, tempfile.TemporaryDirectory() as folder:
        replicas(names, HOME.parent, folder, ["2", "timeline", *OVERLAP, *TOLD, *options])
        found = json.loads((Path(folder) / "timeline.json").read_text())
    draw(
        found["spans"],
        found["layers"],
        f"One step with {found['active']} of {found['layers']} layers, {args.mbit} Mbit/s",
        args.out,
    )
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
