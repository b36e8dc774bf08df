"""A checkpoint as an engine that scores, on any layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pretrain.checkpoint.find import newest_of, require_whole, run_of
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.state import ModelState
from pretrain.config import Run
from pretrain.config.checks import check
from pretrain.config.recipe import Parallel
from pretrain.data.loader import tokenizer_of
from pretrain.engine import Engine, build_engine
from pretrain.errors import UserError
from pretrain.optim.names import MASTER
from pretrain.ranks.launch import launch
from pretrain.ranks.process import Ranks
from pretrain.subnetwork.methods.full import FullKeys
from tokenizer.pieces import Tokenizer


@dataclass(frozen=True)
class Loaded:
    """A model that can be asked."""

    run: Run
    folder: Path
    """The checkpoint."""
    step: int
    engine: Engine
    tokenizer: Tokenizer


@contextmanager
def loaded(path: Path, layout: Parallel, ranks: Ranks) -> Iterator[Loaded]:
    """Load the newest good checkpoint of a run, or the one that `path` is.

    Raises:
        UserError: there is none, it cannot be asked, or the layout is impossible.
    """
    folder, manifest = ranks.on_main(lambda: newest_of(path))
    run = evaluation_of(run_of(folder, manifest), folder, manifest, layout, ranks)
    tokenizer = tokenizer_of(run)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(f"{tokenizer.directory}: not the tokenizer by which {folder} was trained; restore it")
    with launch(run.recipe, ranks, saves=False):
        engine = build_engine(run, ranks)
        state = ModelState(engine.optimizer, 1, 0)
        with ranks.all_or_none():
            state.load(folder, manifest, kinds=[MASTER])
        state.loaded(manifest)
        yield Loaded(run, folder, manifest.step, engine, tokenizer)


def evaluation_of(run: Run, folder: Path, manifest: Manifest, layout: Parallel, ranks: Ranks) -> Run:
    """Return the run as it scores: on this layout, with all layers, in fp32 on a CPU, in bf16 where it trained in FP8.

    Raises:
        UserError: the model cannot be asked, or the layout is impossible.
    """
    require_whole(run, folder, manifest)
    if run.recipe.data.objective == "mlm":
        raise UserError(f"{folder}: a model that fills in masks gives no likelihood of a continuation; tasks are for decoders")
    replicas = max(1, ranks.world_size // layout.model_ranks)
    rounds = layout.pipeline if layout.virtual > 1 else 1  # what an interleaved schedule wants of micro-batches
    zero = run.ds.zero_optimization
    if layout.pipeline > 1 and zero.stage == 3:
        zero = zero.model_copy(update={"stage": 1})
    ds = run.ds.model_copy(
        update={
            "train_batch_size": run.micro_batch * replicas * rounds,
            "gradient_accumulation_steps": "auto",
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": run.micro_batch,
            "progressive_subnetwork": FullKeys(method="full"),
            "bf16": run.ds.bf16.model_copy(update={"enabled": run.ds.bf16.enabled and ranks.device.type == "cuda"}),
        }
    )
    model = run.recipe.model
    if model.attention == "flex" and ranks.device.type != "cuda":
        model = model.model_copy(update={"attention": "sdpa"})
    recipe = run.recipe.model_copy(update={"parallel": layout, "compile": "none", "precision": None, "model": model})
    asked = replace(run, recipe=recipe, ds=ds, world_size=ranks.world_size)
    check(asked)
    return asked
