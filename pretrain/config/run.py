"""A run: what recipe and DeepSpeed JSON say together, and what follows from it. Facts only: read.py makes one, checks.py judges
it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.recipe import Recipe
from pretrain.errors import UserError
from pretrain.subnetwork.methods import FullKeys, Method
from pretrain.subnetwork.methods.growth import GrowthKeys
from pretrain.subnetwork.path import LayerPath, parts_of_model, path_of_sample

SINCE = {
    "ds.communication_data_type": "fp32",
    "ds.progressive_subnetwork.skipped_update": "exact",
    "ds.progressive_subnetwork.full_model_last_steps": 0,
    "ds.progressive_subnetwork.group_lengths": [],
    "ds.progressive_subnetwork.ffn_lengths": [],
    "ds.progressive_subnetwork.width_parts": 1,
    "ds.progressive_subnetwork.width_fixed": 0,
    "ds.scheduler.params.decay_num_steps": None,
    "ds.scheduler.params.decay_type": None,
    "ds.scheduler.params.decay_min_ratio": None,
    "recipe.compile": "auto",
    "recipe.init_from": None,
    "recipe.precision": None,
    "recipe.model.num_query_groups": None,
    "recipe.model.head_dim": None,
    "recipe.model.qk_norm": False,
    "recipe.model.norm_placement": "before",
    "recipe.model.rope_scaling": None,
    "recipe.model.embedding_scale": 1.0,
    "recipe.model.logit_softcap": None,
    "recipe.model.z_loss": 0.0,
}
"""Settings that came later, with the values that mean what was done before: left out where a run is compared with older ones."""


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int = 0
    """The last one that was trained."""
    samples: int = 0
    """Packed samples consumed so far: with the seed, the whole state of the data."""
    checkpoint: Path | None = None
    """Last checkpoint the run resumed from; None for a fresh run."""


@dataclass(frozen=True)
class Batching:
    """How the samples of a step are spread over replicas and micro-batches: samples interleave over replicas."""

    batch_size: int
    """Samples in a step, over all ranks."""
    micro_batch_size: int
    """Samples in a micro-batch of one rank."""
    replicas: int
    """Data-parallel ranks."""

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of one rank in a step."""
        return self.batch_size // (self.micro_batch_size * self.replicas)

    def first_sample(self, micro_batch: int, replica: int) -> int:
        """Return the first sample, within the global batch, of a rank's micro-batch."""
        return (micro_batch * self.replicas + replica) * self.micro_batch_size

    def path_index(self, micro_batch: int, replica: int, paths: int) -> int:
        """Return which of a step's paths a rank's micro-batch takes."""
        return path_of_sample(self.first_sample(micro_batch, replica), self.batch_size, paths)


@dataclass(frozen=True)
class Run:
    """What is to be trained, checked and ready; nothing in it depends on which rank asks."""

    name: str
    """The recipe's name, or what it says its name is."""
    recipe: Recipe
    ds: DeepSpeedConfig
    recipe_file: str
    ds_file: str
    world_size: int = 1
    notices: tuple[str, ...] = ()
    """What the user should know of how the files were read."""

    @property
    def steps(self) -> int:
        return self.recipe.steps

    @property
    def data_parallel(self) -> int:
        """Replicas of the model."""
        return self.world_size // self.recipe.parallel.model_ranks

    @property
    def batching(self) -> Batching:
        """How the samples of a step are spread over replicas and micro-batches."""
        return Batching(self.ds.train_batch_size, self.ds.train_micro_batch_size_per_gpu, self.data_parallel)

    @property
    def batch(self) -> int:
        """Samples in a step."""
        return self.batching.batch_size

    @property
    def micro_batch(self) -> int:
        """Samples in a micro-batch of one rank."""
        return self.batching.micro_batch_size

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of one rank in a step."""
        return self.batching.micro_batches

    def path_index(self, micro_batch: int, data_parallel_rank: int, paths: int) -> int:
        """Return which of a step's paths a rank's micro-batch takes."""
        return self.batching.path_index(micro_batch, data_parallel_rank, paths)

    @property
    def backward_cost(self) -> float:
        """Operations of a backward pass, in forwards; recomputation runs the forward pass once more."""
        return 3.0 if self.recipe.model.recompute == "layer" else 2.0

    @property
    def precision(self) -> str:
        """What numbers are computed in, in words."""
        kind = "bf16" if self.ds.bf16.enabled else "fp32"
        return kind if self.recipe.precision is None else f"{kind}, the layers' products in {self.recipe.precision.upper()}"

    @property
    def tokens_per_step(self) -> int:
        """Positions of all packed samples, whether they hold text, target or padding."""
        return self.batch * self.recipe.data.sequence_length

    @cached_property
    def method(self) -> Method:
        keys, scheduler = self.ds.progressive_subnetwork, self.ds.scheduler
        if getattr(keys, "full_model_last_steps", 0) == "decay" and scheduler is not None:
            if scheduler.params.decay_num_steps is not None:
                keys = keys.model_copy(update={"full_model_last_steps": scheduler.params.decay_num_steps})
        try:
            return keys.build(self.recipe.model.num_layers, self.steps, self.recipe.seed)
        except ValueError as error:
            raise UserError(f'{self.ds_file}: "progressive_subnetwork": {error}') from None

    def position(self, start: Position, step: int) -> Position:
        """Return how far the run is after `step`, having resumed at `start`; batches may have had another size before."""
        return Position(step, start.samples + (step - start.step) * self.batch)

    def layout(self) -> dict[str, int | bool]:
        """Return how the model's state is spread over the ranks."""
        layout = self.recipe.parallel.model_dump()
        return {**layout, "data": self.data_parallel, "zero_stage": self.ds.zero_optimization.stage}

    def saves(self, step: int) -> bool:
        """Growth reads the layers that it copies from the checkpoint before it."""
        return step % self.recipe.save_every == 0 or step == self.steps or bool(self.method.copies(step + 1))

    def evaluates(self, step: int) -> bool:
        return step % self.recipe.eval_every == 0 or step == self.steps

    def evaluates_parts(self, step: int) -> bool:
        return self.recipe.eval_parts and step == self.steps

    def evaluates_tasks(self, step: int) -> bool:
        every = self.recipe.eval_tasks_every or self.steps
        return bool(self.recipe.eval_tasks) and (step % every == 0 or step == self.steps)

    def evaluations(self, step: int) -> int:
        """Return how many rows of evaluations a step has: held-out losses with all layers, with parts of them, and tasks."""
        return self.evaluates(step) + self.evaluates_parts(step) + self.evaluates_tasks(step)

    @property
    def parts(self) -> dict[str, LayerPath]:
        """Parts of the model that may be evaluated by themselves."""
        return parts_of_model(self.recipe.model.num_layers)

    def identity(self) -> dict[str, Any]:
        """What decides the losses of a run, as dotted keys. Layout, sharding, micro-batches, saving and logging do not."""
        indifferent = {
            "recipe.parallel",
            "recipe.save_every",
            "recipe.save_async",
            "recipe.on_save_failure",
            "recipe.keep_checkpoints",
            "recipe.keep_every",
            "recipe.log_every",
            "recipe.log_to",
            "recipe.eval_every",
            "recipe.eval_parts",
            "recipe.eval_tasks",
            "recipe.eval_tasks_data",
            "recipe.eval_tasks_every",
            "recipe.eval_tasks_share",
            "recipe.threads",
            "recipe.deterministic",
            "recipe.watchdog_seconds",
            "recipe.name",
            "recipe.export_as",
            "recipe.model.recompute",
            "recipe.model.attention",
            "ds.zero_optimization",
            "ds.train_micro_batch_size_per_gpu",
            "ds.gradient_accumulation_steps",
            "ds.optimizer.params.fused",
            "ds.optimizer.params.torch_adam",
        }
        keys = _flat({"recipe": self.recipe.model_dump(mode="json"), "ds": self.ds.model_dump(mode="json")})
        decide = {k: v for k, v in keys.items() if not any(k == i or k.startswith(i + ".") for i in indifferent)}
        if not self.method_sleeps:
            decide.pop("ds.progressive_subnetwork.skipped_update")
        return {k: v for k, v in decide.items() if (k, v) not in SINCE.items()}

    @property
    def method_sleeps(self) -> bool:
        """Whether there are layers, or parts of them, that some steps leave out and others run before them did: not where all
        run, nor where a model grows by copies, which take over moments and counts."""
        return not isinstance(self.ds.progressive_subnetwork, FullKeys | GrowthKeys)


def as_recorded(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the DeepSpeed JSON of a run that was written down, with what was done then where it has no key for it and today's
    default is another."""
    found, name = dict(ds_config), "progressive_subnetwork"
    if isinstance(found.get(name), Mapping):
        found[name] = {"skipped_update": SINCE[f"ds.{name}.skipped_update"], **found[name]}
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}
