"""Trains one recipe on several layouts of one world size; started by torchrun from tests/system/test_layouts.py.

torchrun --standalone --nproc-per-node N -m tests.support.worker RECIPE.yaml DS.json OUT.pt LAYOUT.json
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config import read_run
from pretrain.ranks.libraries import prepare_libraries

prepare_libraries("cpu")  # before Megatron-Core is imported

from pretrain.ranks.groups import destroy_groups, make_groups  # noqa: E402
from pretrain.ranks.process import Ranks  # noqa: E402
from tests.support.requests import agreements, scores, written  # noqa: E402
from tests.support.weights import weights_of  # noqa: E402

STEPS = 20


def main() -> None:
    recipe, ds, out, cases = sys.argv[1:]
    device = torch.device("cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for name, settings in json.loads(Path(cases).read_text()).items():
        broken, lengths, folder, steps, go_on, requests, prompts, agrees = (
            settings.pop(key, None) for key in ("break", "count", "resume", "steps of test", "go on", "score", "write", "agree")
        )
        run = read_run(recipe, [("--" + key, value) for key, value in settings.items()], ds, dist.get_world_size())
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
        make_groups(run.recipe.parallel, run.recipe.seed, device)
        with BREAKS[broken]() if broken else nullcontext():
            if lengths:
                results[name] = count_collectives(run, ranks, map(int, lengths.split("-")))
            elif requests:
                results[name] = [vars(score) for score in scores(run, ranks, requests, both_ways=True)]
            elif agrees:
                results[name] = agreements(run, ranks)
            elif prompts:
                results[name] = written(run, ranks, prompts)
            elif go_on:
                results[name] = train_from(run, ranks, **{**go_on, "folder": Path(go_on["folder"])})
            else:
                results[name] = train_and_resume(run, ranks, Path(folder)) if folder else train(run, ranks, int(steps or STEPS))
        torch._dynamo.reset()  # one process of a user compiles for one layout
        forget_deepspeed_groups()
        destroy_groups()
        end_groups()
    if dist.get_rank() == 0:
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()


def shifted_path():
    """Rank 1 draws the next step's paths."""
    from pretrain.subnetwork.methods.raptr import Raptr

    paths = Raptr.paths
    return patch.object(Raptr, "paths", lambda self, step: paths(self, step + (dist.get_rank() == 1)))


def tied_embedding_counted_twice():
    from pretrain.optim import model

    def mark_none(chunked):
        for _, parameter in chunked.named_parameters():
            parameter.ds_pipe_replicated = False

    return patch.object(model, "mark_copies", mark_none)


def norms_of_own_heads():
    """Each tensor rank trains its norms of queries and keys by its own heads alone."""
    from copy import copy

    from pretrain.optim import layerwise

    summed = layerwise.sum_over_model_ranks

    def without_norms(model, config):
        config = copy(config)
        config.qk_layernorm = False
        summed(model, config)

    return patch.object(layerwise, "sum_over_model_ranks", without_norms)


def last_micro_batch_alone():
    """Of a layer's gradients, which ZeRO-3 sends after each micro-batch, the last ones count, not their sum."""
    from pretrain.optim.fully_sharded import FullyShardedOptimizer

    leave = FullyShardedOptimizer._leave_first

    def forgetful(self):
        for group in self._pass[0].groups:
            group.reduced = None
        leave(self)

    return patch.object(FullyShardedOptimizer, "_leave_first", forgetful)


def no_clone():
    """A skipped layer returns its input itself, even where that is the chunk's."""
    from pretrain.model.layer import SkippableLayer

    forward = SkippableLayer.forward

    def without(self, hidden_states, attention_mask, context=None, **inputs):
        if attention_mask.path.active[self.layer_number - 1]:
            return forward(self, hidden_states, attention_mask, context, **inputs)
        return hidden_states, context

    return patch.object(SkippableLayer, "forward", without)


def moments_forgotten():
    """A checkpoint's moments are read and not used."""
    from pretrain.optim.shards import Shard

    numbers = Shard.numbers

    def of_copies(self, kind):
        return numbers(self, kind) if kind == "weight" else numbers(self, kind).clone()

    return patch.object(Shard, "numbers", of_copies)


def small_pieces():
    """No break: the loss takes several pieces, as with a large vocabulary."""
    from pretrain.cost import loss

    return patch.object(loss, "PIECE_ON_CPU", 12_345)


BREAKS = {
    f.__name__: f
    for f in (
        shifted_path,
        tied_embedding_counted_twice,
        last_micro_batch_alone,
        norms_of_own_heads,
        no_clone,
        moments_forgotten,
        small_pieces,
    )  # fmt: skip
}


def train(run, ranks: Ranks, steps: int = STEPS) -> dict:
    """Losses, norms, an evaluation and the whole final weights, the same on every rank."""
    from pretrain.data.loader import open_data
    from pretrain.engine import build_engine

    data = open_data(run, ranks.data_parallel_rank, ranks.needs_text)
    engine = build_engine(run, ranks)
    rows = []
    for step in range(1, steps + 1):
        result = engine.step(step, data.batch(step), run.method.paths(step))
        rows.append((result.loss, result.grad_norm))
    evaluation = engine.evaluate(data.held_out())
    data.close()
    weights = whole_weights(engine)
    count = sum(p.numel() for p in engine.model.parameters())
    counts = [None] * ranks.world_size
    dist.all_gather_object(counts, count)
    return {"rows": rows, "evaluation": evaluation.loss, "weights": weights, "parameters": counts}


def train_and_resume(run, ranks: Ranks, folder: Path, steps: int = 8) -> dict:
    """Rows and weights of the second half, unbroken and from a checkpoint of the first, by a new engine."""
    half = steps // 2
    unbroken = train_from(run, ranks, folder, steps, saves=(half,))
    return {"unbroken": {**unbroken, "rows": unbroken["rows"][half:]}, "resumed": train_from(run, ranks, folder, steps)}


def train_from(run, ranks: Ranks, folder: Path, last: int, saves: Sequence[int] = ()) -> dict:
    """Go on from the newest checkpoint of `folder`, if there is one: rows until step `last`, and the weights then."""
    from pretrain.checkpoint.directory import RunDirectory
    from pretrain.checkpoint.resume import resume
    from pretrain.checkpoint.saver import Saver
    from pretrain.data.loader import open_data
    from pretrain.engine import build_engine

    data, engine, directory, rows = (
        open_data(run, ranks.data_parallel_rank, ranks.needs_text),
        build_engine(run, ranks),
        RunDirectory(folder),
        [],
    )
    with Saver(run, engine.optimizer, ranks, directory, data.checksums()) as saver:
        start = resume(run, saver)
        data.start_at(start)
        for step in range(start.step + 1, last + 1):
            result = engine.step(step, data.batch(step), run.method.paths(step))
            rows.append((result.loss, result.grad_norm, result.lr))
            saver.check()
            if step in saves:
                saver.begin(run.position(start, step), result.lr)
    data.close()
    return {"rows": rows, "from": start.step, "weights": whole_weights(engine)}


class CountAllReduces(TorchDispatchMode):
    """Counts all-reduces, functional ones too."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) in ("c10d.allreduce_.default", "_c10d_functional.all_reduce.default")
        return func(*args, **(kwargs or {}))


def count_collectives(run, ranks: Ranks, lengths) -> list[int]:
    """All-reduces in a forward and backward pass of one micro-batch, for each number of active layers."""
    from pretrain.data.loader import open_data
    from pretrain.engine import build_engine
    from pretrain.engine.micro_batch import MicroBatch
    from pretrain.subnetwork import LayerPath

    data = open_data(run, ranks.data_parallel_rank, ranks.needs_text)
    engine, batch, layers = build_engine(run, ranks), data.batch(1)[0], run.recipe.model.num_layers
    data.close()
    counts = []
    for length in lengths:
        path = LayerPath(tuple(layer < length for layer in range(layers)), (1.0,) * layers)
        with CountAllReduces() as counted:
            engine.forward_backward([MicroBatch(batch, path)], scale=1.0)
        counts.append(counted.count)
        engine.model.zero_grad()
    return counts


def whole_weights(engine) -> dict[str, torch.Tensor]:
    """Every weight in full, put together from tensor and pipeline ranks."""
    from megatron.core import parallel_state

    tensor_ranks = parallel_state.get_tensor_model_parallel_world_size()
    engine.optimizer.settle()
    mine = {}
    for name, parameter in weights_of(engine.model).items():
        part = parameter.float()
        if getattr(parameter, "tensor_model_parallel", False) and tensor_ranks > 1:
            parts = [torch.empty_like(part) for _ in range(tensor_ranks)]
            dist.all_gather(parts, part, group=parallel_state.get_tensor_model_parallel_group())
            stride, dim = parameter.partition_stride, parameter.partition_dim
            pieces = [p.chunk(stride, dim) for p in parts]
            part = torch.cat([pieces[rank][s] for s in range(stride) for rank in range(tensor_ranks)], dim)
        mine[name] = part
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    whole: dict[str, torch.Tensor] = {}
    for weights in everyone:
        for name, weight in weights.items():
            if name in whole:
                assert torch.allclose(whole[name], weight, atol=1e-6), f"copies of {name} differ between ranks"
            whole[name] = weight
    return whole


def forget_deepspeed_groups() -> None:
    """DeepSpeed keeps groups for the life of a process; here the next layout has others."""
    from deepspeed.utils import groups

    for name in ("_WORLD_GROUP", "mpu", "_DATA_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_TENSOR_MODEL_PARALLEL_GROUP",
                 "_ZERO_PARAM_INTRA_PARALLEL_GROUP"):  # fmt: skip
        setattr(groups, name, None)


def end_groups() -> None:
    """Every group has threads of its own, and the next layout makes some twenty more."""
    from torch.distributed.distributed_c10d import _world

    for group in [group for group in _world.pg_map if group is not dist.group.WORLD]:
        dist.destroy_process_group(group)


if __name__ == "__main__":
    main()
