"""From files and the words of a command line to a run, checked."""

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from pretrain.config.checks import check
from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.foreign import FORMER
from pretrain.config.recipe import Recipe, find_recipe
from pretrain.config.run import Run
from pretrain.config.strict import COMMAND_LINE, parse, read_json, read_yaml, set_key
from pretrain.errors import UserError
from pretrain.subnetwork.methods.pld import GAMMA, THETA, PldKeys

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


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
        ds_config: path to the JSON; if None, the recipe's file with .json in place of .yaml, or else `ds_configs/<recipe>.json`.
        world_size: number of ranks; None for as many as one replica needs.

    Raises:
        UserError: the first thing that is wrong.
    """
    recipe_path = find_recipe(recipe)
    ds_path = Path(ds_config) if ds_config else json_of(recipe_path)
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
    _derive_batch(ds_data, recipe_data, world_size, str(ds_path))
    ds = parse(DeepSpeedConfig, ds_data, _source(ds_path, overrides, "--ds."))
    if tokens is not None:
        recipe_data["steps"] = 1  # until the rest of the recipe is known to be right
    parsed = parse(Recipe, recipe_data, _source(recipe_path, overrides, ""))
    if tokens is not None:
        steps = _steps(tokens, ds.train_batch_size * parsed.data.sequence_length)
        parsed = parsed.model_copy(update={"steps": steps})
    ranks = parsed.parallel.model_ranks if world_size is None else world_size
    notices: tuple[str, ...] = ()
    if FORMER in ds_data:
        block = ds.progressive_subnetwork
        means = '"method": "full"'
        if isinstance(block, PldKeys):
            theta, gamma = block.given.get("theta", THETA), block.given.get("gamma", GAMMA)
            means = f'"method": "pld", "theta": {theta:g}, "gamma": {gamma:g}'
        notices = (f'{ds_path}: "{FORMER}", which DeepSpeed has removed, is taken for "progressive_subnetwork": {{{means}}}',)
    return Run(parsed.name or recipe_path.stem, parsed, ds, str(recipe_path), str(ds_path), ranks, notices)


def json_of(recipe: Path) -> Path:
    """Return the JSON that goes with a recipe: beside it, or one of those that are shipped.

    Raises:
        UserError: there is neither.
    """
    beside, shipped = recipe.with_suffix(".json"), DS_CONFIGS / f"{recipe.stem}.json"
    found = next((path for path in (beside, shipped) if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{recipe}: how to optimise is said in a JSON file, and neither {beside} nor {shipped} is there; copy one of"
            f" {DS_CONFIGS} to {beside}, or name one with --ds-config"
        )
    return found


def _derive_batch(ds: dict[str, Any], recipe: dict[str, Any], world_size: int | None, where: str) -> None:
    """Fill in a batch size that is "auto", as DeepSpeed and Hugging Face's users write it, where the other sizes decide it.

    Raises:
        UserError: they do not.
    """
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    batch, micro, accumulation = (ds.get(name) for name in names)
    if "auto" not in (batch, micro):
        return
    layout = recipe.get("parallel") or {}
    model_ranks = [layout.get(name, 1) for name in ("tensor", "pipeline")] if isinstance(layout, dict) else []
    sizes = [number for number in (batch, micro, accumulation, *model_ranks) if number not in ("auto", None)]
    if not model_ranks or not all(isinstance(size, int) and size > 0 for size in sizes):
        return  # the fault is found where each is read
    replicas = 1 if world_size is None else max(1, world_size // prod(model_ranks))
    if isinstance(micro, int) and isinstance(accumulation, int):
        ds[names[0]] = micro * accumulation * replicas
    elif isinstance(batch, int) and isinstance(accumulation, int) and batch % (accumulation * replicas) == 0:
        ds[names[1]] = batch // (accumulation * replicas)
    else:
        unknown = names[0] if batch == "auto" else names[1]
        others = [name for name in names if name != unknown]
        raise UserError(
            f'{where}: "{unknown}" is "auto", and "{others[0]}" and "{others[1]}" with {replicas} replicas do not decide it;'
            " write a number"
        )


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
