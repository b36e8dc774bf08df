"""A run: recipe, DeepSpeed JSON and command line put together, checked against one another, with what follows from them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pretrain.config.checks import check
from pretrain.config.deepspeed import FORMER, DeepSpeedConfig
from pretrain.config.recipe import Recipe, find_recipe
from pretrain.config.strict import COMMAND_LINE, parse, read_json, read_yaml, set_key
from pretrain.errors import UserError
from pretrain.subnetwork.methods import Method, make_method
from pretrain.subnetwork.path import Path as LayerPath
from pretrain.subnetwork.path import parts_of_model, path_of_sample

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int = 0
    """The last one that was trained."""
    samples: int = 0
    """Packed samples consumed so far: with the seed, the whole state of the data."""
    checkpoint: Path | None = None
    """From which the run has gone on, if it stands there."""


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
    def batch(self) -> int:
        """Samples in a step."""
        return self.ds.train_batch_size

    @property
    def micro_batch(self) -> int:
        """Samples in a micro-batch of one rank."""
        return self.ds.train_micro_batch_size_per_gpu

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one rank in a step."""
        return self.batch // (self.micro_batch * self.data_parallel)

    @property
    def backward_cost(self) -> float:
        """Operations of a backward pass, in forwards; recomputation runs the forward pass once more."""
        return 3.0 if self.recipe.model.recompute == "layer" else 2.0

    @property
    def tokens_per_step(self) -> int:
        """Positions of all packed samples, whether they hold text, target or padding."""
        return self.batch * self.recipe.data.sequence_length

    @cached_property
    def method(self) -> Method:
        block = self.ds.progressive_subnetwork
        settings = {"path_seed": self.recipe.seed, **block.settings}
        try:
            return make_method(block.method, layers=self.recipe.model.num_layers, steps=self.steps, **settings)
        except ValueError as error:
            raise UserError(f'{self.ds_file}: "progressive_subnetwork": {error}') from None

    def position(self, start: Position, step: int) -> Position:
        """Where the run stands after `step`, having gone on from `start`; batches may have had another size before."""
        return Position(step, start.samples + (step - start.step) * self.batch)

    def layout(self) -> dict[str, Any]:
        """How the model's state is spread over the ranks."""
        layout = self.recipe.parallel.model_dump()
        return {**layout, "data": self.data_parallel, "zero_stage": self.ds.zero_optimization.stage}

    def saves(self, step: int) -> bool:
        """Growth reads the layers that it copies from the checkpoint before it."""
        return step % self.recipe.save_every == 0 or step == self.steps or bool(self.method.copies(step + 1))

    def evaluates(self, step: int) -> bool:
        return step % self.recipe.eval_every == 0 or step == self.steps

    def sample(self, micro_batch: int, data_parallel_rank: int) -> int:
        """First sample, within the global batch, of a rank's micro-batch: samples interleave over replicas."""
        return (micro_batch * self.data_parallel + data_parallel_rank) * self.micro_batch

    def path_index(self, micro_batch: int, data_parallel_rank: int, paths: int) -> int:
        """Which of a step's paths a rank's micro-batch takes."""
        return path_of_sample(self.sample(micro_batch, data_parallel_rank), self.batch, paths)

    def evaluates_parts(self, step: int) -> bool:
        return self.recipe.eval_parts and step == self.steps

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
            "recipe.eval_every",
            "recipe.eval_parts",
            "recipe.threads",
            "recipe.watchdog_seconds",
            "recipe.name",
            "recipe.model.recompute",
            "recipe.model.attention",
            "ds.zero_optimization",
            "ds.train_micro_batch_size_per_gpu",
            "ds.gradient_accumulation_steps",
            "ds.optimizer.params.fused",
            "ds.optimizer.params.torch_adam",
        }
        keys = _flat({"recipe": self.recipe.model_dump(mode="json"), "ds": self.ds.model_dump(mode="json")})
        return {k: v for k, v in keys.items() if not any(k == i or k.startswith(i + ".") for i in indifferent)}


def read_run(recipe: str, overrides: Sequence[tuple[str, str]], ds_config: str | None = None, world_size: int | None = 1) -> Run:
    """Read and check everything that can be checked without a model or data; arguments are those of `parse_run`.

    Raises:
        UserError: the first thing that is wrong.
    """
    run = parse_run(recipe, overrides, ds_config, world_size)
    check(run)
    return run


def parse_run(recipe: str, overrides: Sequence[tuple[str, str]], ds_config: str | None, world_size: int | None) -> Run:
    """A run whose every setting is right by itself; whether they go together is for `check` to say.

    Args:
        recipe: name or path.
        overrides: pairs of an option, as `--parallel.tensor` or `--ds.optimizer.params.lr`, and its value.
        ds_config: path to the JSON; `ds_configs/<recipe>.json` if None.
        world_size: number of ranks; None for as many as one replica needs.

    Raises:
        UserError: the first thing that is wrong.
    """
    recipe_path = find_recipe(recipe)
    ds_path = Path(ds_config) if ds_config else DS_CONFIGS / f"{recipe_path.stem}.json"
    recipe_data, ds_data = read_yaml(recipe_path), read_json(ds_path)
    tokens = None
    for option, value in overrides:
        key = option.removeprefix("--").replace("-", "_")
        if key.startswith("ds."):
            set_key(ds_data, DeepSpeedConfig, key.removeprefix("ds."), value, "--" + key)
        elif key == "tokens":
            tokens = value
        else:
            set_key(recipe_data, Recipe, key, value, "--" + key)
    ds = parse(DeepSpeedConfig, ds_data, _source(ds_path, overrides, "--ds."))
    if tokens is not None:
        recipe_data["steps"] = 1  # until the rest of the recipe is known to be right
    parsed = parse(Recipe, recipe_data, _source(recipe_path, overrides, ""))
    if tokens is not None:
        steps = _steps(tokens, ds.train_batch_size * parsed.data.sequence_length)
        parsed = parsed.model_copy(update={"steps": steps})
    ranks = parsed.parallel.model_ranks if world_size is None else world_size
    notices = ()
    if FORMER in ds_data:
        block = ds.progressive_subnetwork
        means = (
            f'"method": "pld", "theta": {block.settings.get("theta", 0.5):g}, "gamma": {block.settings.get("gamma", 0.001):g}'
            if block.method == "pld"
            else '"method": "full"'
        )
        notices = (f'{ds_path}: "{FORMER}", which DeepSpeed has removed, is taken for "progressive_subnetwork": {{{means}}}',)
    return Run(parsed.name or recipe_path.stem, parsed, ds, str(recipe_path), str(ds_path), ranks, notices)


def _source(path: Path, overrides: Sequence[tuple[str, str]], prefix: str) -> str:
    """The file that an error names, and the command line where it had a say."""
    changed = [option for option, _ in overrides if option.startswith("--ds.") == (prefix == "--ds.")]
    return f"{path} with {COMMAND_LINE} {' '.join(changed)}" if changed else str(path)


def _steps(tokens: str, tokens_per_step: int) -> int:
    units = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", tokens.strip().upper())
    if match is None or float(match[1]) == 0:
        raise UserError(f'{COMMAND_LINE}: option "--tokens": {tokens!r} is not a number such as 32B or 500M')
    return max(1, round(float(match[1]) * units[match[2]] / tokens_per_step))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}
