"""Trains with layers that sleep, and beside it a twin in which none does, and compares them bit for bit on every rank.

torchrun --standalone --nproc-per-node N -m tests.support.lazy RECIPE.yaml DS.json OUT.json CASES.json
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from pretrain.config import read_run
from pretrain.ranks.libraries import prepare_libraries

prepare_libraries("cpu")  # before Megatron-Core is imported

from pretrain.data.loader import open_data  # noqa: E402
from pretrain.engine import engine as engine_module  # noqa: E402
from pretrain.errors import TrainingStopped  # noqa: E402
from pretrain.optim import sleep  # noqa: E402
from pretrain.optim.fully_sharded import FullyShardedOptimizer  # noqa: E402
from pretrain.optim.layerwise import LayerwiseOptimizer  # noqa: E402
from pretrain.optim.names import TENSORS  # noqa: E402
from pretrain.ranks.groups import destroy_groups, make_groups  # noqa: E402
from pretrain.ranks.process import Ranks  # noqa: E402
from tests.support.lazy_breaks import BREAKS  # noqa: E402
from tests.support.worker import end_groups, forget_deepspeed_groups  # noqa: E402

STEPS = 24
LATE = 2.0
"""Seconds."""


class Eager:
    """Sums, updates and gathers all layers in every step; those that nobody ran have a gradient of 0. Under `skipped_update`
    "none" AdamW passes over them, as over a parameter whose gradient is None."""

    ran: set[int] | None = None

    def begin(self, ran):
        self.ran = set(ran.units)
        super().begin(ran)

    def _woken_by(self, ran):
        return range(len(ran.last_micro_batch))

    def _bundles(self, groups, most):
        """Messages of the layers that ran are as they would be without the others: rounding depends on what is sent together."""
        groups = list(groups)
        awake = [group for group in groups if self.ran is None or group.unit is None or group.unit in self.ran]
        return super()._bundles(awake, most) + super()._bundles([group for group in groups if group not in awake], most)

    def _update(self, ratio, lr):
        if not self.sleepers.is_exact:
            for group in self._awake:
                if group.unit is not None and group.unit not in self.ran:
                    assert not group.reduced.any()
                    group.reduced = None
            self._awake = [group for group in self._awake if group.unit is None or group.unit in self.ran]
            self._awake_units = self.ran
        super()._update(ratio, lr)


class Twin(Eager, LayerwiseOptimizer):
    """The twin of stages 1 and 2."""


class ShardedTwin(Eager, FullyShardedOptimizer):
    """The twin of stage 3, which takes all layers through all passes."""

    def _expect(self, ran):
        everything = frozenset(range(len(ran.last_micro_batch)))
        super()._expect(replace(ran, by_micro_batch=(everything,) * len(ran.by_micro_batch)))


@contextmanager
def trained_by(layerwise_kind: type, sharded_kind: type) -> Iterator[None]:
    with (
        patch.object(engine_module, "LayerwiseOptimizer", layerwise_kind),
        patch.object(engine_module, "FullyShardedOptimizer", sharded_kind),
    ):
        yield


def train(run, ranks: Ranks, kinds: tuple[type, type], events: dict[str, str], steps: int = STEPS) -> dict:
    """Losses, norms, weights, masters, moments and counts. `events`: what happens after which step."""
    data = open_data(run, ranks.data_parallel_rank, ranks.needs_text)
    with trained_by(*kinds):
        engine = engine_module.build_engine(run, ranks)
    rows = []
    for step in range(1, steps + 1):
        result = engine.step(step, data.batch(step), run.method.paths(step))
        rows.append((result.loss, result.grad_norm))
        event = events.get(str(step))
        if event == "save":
            engine.optimizer.catch_up()
        elif event == "evaluate":
            engine.evaluate(data.held_out())
        elif event == "part":
            engine.evaluate(data.held_out(), run.parts["every_other"])
        elif event == "load":  # everything from a copy of the masters and moments, as a checkpoint would bring them back
            engine = reloaded(run, ranks, engine, kinds)
    data.close()
    return {"rows": rows, **state(engine)}


def state(engine) -> dict:
    """What a rank holds when nothing is late."""
    engine.optimizer.catch_up()
    engine.optimizer.settle()
    tensors = {f"{s.name}/{kind}": s.numbers(kind).clone() for s in engine.optimizer.shards() for kind in TENSORS}
    weights = {name: weight.detach().clone() for name, weight in engine.model.named_parameters()}
    return {"tensors": tensors, "weights": weights, "updates": engine.optimizer.updates}


def reloaded(run, ranks: Ranks, engine, kinds: tuple[type, type]):
    """A new engine that takes over what the other one would have saved."""
    engine.optimizer.catch_up()
    with trained_by(*kinds):
        new = engine_module.build_engine(run, ranks)
    for ours, theirs in zip(new.optimizer.shards(), engine.optimizer.shards(), strict=True):
        for name in TENSORS:
            ours.numbers(name).copy_(theirs.numbers(name))
    new.optimizer.restored(engine.optimizer.sleepers.step, engine.optimizer.updates)
    return new


def differences(ours: dict, theirs: dict) -> list[str]:
    """What is not bit-equal."""
    found = ["updates"] if ours["updates"] != theirs["updates"] else []
    found += [f"step {n}" for n, (a, b) in enumerate(zip(ours["rows"], theirs["rows"]), start=1) if a != b]
    for what in ("tensors", "weights"):
        assert ours[what].keys() == theirs[what].keys()
        found += [f"{what} {name}" for name, one in ours[what].items() if not torch.equal(one, theirs[what][name])]
    return found


@contextmanager
def counted(watch: Callable[[], None]) -> Iterator[dict[str, list[int]]]:
    """Bytes that each collective is given, by its kind; a sum's on all replicas. `watch` is called with each."""
    sizes: dict[str, list[int]] = {"reduce_scatter_tensor": [], "all_gather_into_tensor": [], "all_reduce": []}

    def wrapped(name: str) -> Callable:
        original = getattr(dist, name)

        def call(tensor, *args, **options):
            whole = args[0] if name == "reduce_scatter_tensor" else tensor
            sizes[name].append(whole.numel() * whole.element_size())
            watch()
            return original(tensor, *args, **options)

        return call

    with ExitStack() as patches:
        for name in sizes:
            patches.enter_context(patch.object(dist, name, wrapped(name)))
        yield sizes


def bytes_of_steps(run, ranks: Ranks) -> dict:
    """Bytes of every collective of each step, with what was active in it, the most bytes of weights that were there at a time,
    and whether sleeping layers were left alone."""
    data = open_data(run, ranks.data_parallel_rank, ranks.needs_text)
    engine = engine_module.build_engine(run, ranks)
    groups, lent = engine.optimizer.groups, engine.optimizer._is_lent
    rows, alone = [], True
    for step in range(1, 9):
        paths = run.method.paths(step)
        union = {unit for path in paths for unit in run.method.units.of_path(path)}
        awake = [group for group in groups if group.unit is None or group.unit in union]
        asleep = [group for group in groups if group not in awake]
        before = [kept(engine, group) for group in asleep]
        updates, exact = engine.optimizer.updates, engine.optimizer.sleepers.is_exact
        changed = [g for g in awake if step > 1 and (g.unit is None or exact or updates[g.unit]) and not lent(g)]
        weights = []
        with counted(lambda: weights.append(sum(group.weights.untyped_storage().nbytes() for group in groups))) as sizes:
            engine.step(step, data.batch(step), paths)
        alone &= all(torch.equal(a, b) for group, old in zip(asleep, before) for a, b in zip(old, kept(engine, group)))
        rows.append(
            {
                "union": len(union),
                "elements": sum(group.size for group in awake if not lent(group)),
                "lent": [group.size for group in awake if lent(group)],
                "changed": sum(group.size for group in changed),
                "most weights": max(weights),
                **sizes,
            }
        )
    late = engine.step(9, data.batch(9), run.method.paths(9)) if ranks.rank == 0 else late_step(run, engine, data)
    data.close()
    resident = sum(group.size for group in groups if not lent(group))
    sizes = {"resident": resident, "all": sum(group.size for group in groups)}
    return {"rows": rows, "alone": alone, **sizes, "waiting is not own time": max(late.forward_seconds) < LATE / 2}


def late_step(run, engine, data):
    """A step whose weights this rank begins to gather late."""
    begin = engine.optimizer.begin

    def begin_late(ran):
        time.sleep(LATE)
        begin(ran)

    with patch.object(engine.optimizer, "begin", begin_late):
        return engine.step(9, data.batch(9), run.method.paths(9))


def kept(engine, group) -> list[torch.Tensor]:
    """Copies of all that a rank has of a group."""
    state = engine.optimizer.adamw.state.get(group.master, {})
    weights = group.weights if group.weights.untyped_storage().size() else None
    return [t.detach().clone() for t in (group.master, weights, group.gradients, *state.values()) if t is not None]


def read_run_of(case: dict, *more: str):
    """The run of a case's settings, with those under further names on top."""
    settings = {key: value for name in ("settings", *more) for key, value in case[name].items()}
    return read_run(sys.argv[1], [("--" + key, value) for key, value in settings.items()], sys.argv[2], dist.get_world_size())


def compared(run, ranks: Ranks, case: dict) -> dict:
    """How what sleeps differs from its twin, with some in common; whatever ends a broken one is noticed, too."""
    events, broken = case["events"], case.get("break")
    twins = read_run_of(case, "settings of the twin") if "settings of the twin" in case else run
    theirs = train(twins, ranks, (Twin, ShardedTwin), {})
    try:
        longest = patch.object(sleep, "LONGEST_SLEEP", case.get("longest sleep", sleep.LONGEST_SLEEP))
        with longest, BREAKS[broken]() if broken else nullcontext():
            ours = train(run, ranks, (LayerwiseOptimizer, FullyShardedOptimizer), events)
    except (TrainingStopped, AssertionError, KeyError) as error:
        return {"different": [f"{type(error).__name__}: {error}"]}
    steps = [run.method.paths(step) for step in range(1, STEPS + 1)]
    units = run.method.units
    asleep = sum(units.count - len({unit for path in paths for unit in units.of_path(path)}) for paths in steps)
    return {"different": differences(ours, theirs), "asleep": asleep, "updates": ours["updates"], "rows": ours["rows"]}


def main() -> None:
    out, cases = sys.argv[3:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for name, case in json.loads(Path(cases).read_text()).items():
        run = read_run_of(case)
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
        make_groups(run.recipe.parallel, run.recipe.seed, ranks.device)
        everyone = [None] * ranks.world_size
        dist.all_gather_object(everyone, bytes_of_steps(run, ranks) if case.get("bytes") else compared(run, ranks, case))
        results[name] = everyone
        forget_deepspeed_groups()
        destroy_groups()
        end_groups()
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
