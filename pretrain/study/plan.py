"""STUDY.yaml: methods x seeds x sizes in one file, as the runs that it asks for."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pretrain.config.read import read_run
from pretrain.config.run import Run
from pretrain.config.strict import COMMAND_LINE, did_you_mean, parse, read_yaml
from pretrain.cost.flops import savings
from pretrain.errors import UserError
from pretrain.schema import Count, Positive, Strict

NAME = r"[A-Za-z0-9_.]+"
"""Names of methods and sizes, which go into names of folders."""
SAME_FOR_ALL = ("--data.", "--model.", "--eval_samples", "--ds.train_batch_size")
"""What all methods have in common, so that equal seeds are pairs: options that begin so."""
DECIDED = {"--seed": "seeds", "--name": "name", "--ds.progressive_subnetwork": "methods", "--tokens": "options: {steps: N}"}
"""Options that a study decides in its own way, and by which key."""


def _words(value: object) -> object:
    return value.split() if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], Field(min_length=1, strict=False), BeforeValidator(_words)]


class EvaluateKeys(Strict):
    """What the finished runs of a study are asked, as `python -m pretrain evaluate` does it."""

    tasks: Words
    """Tiers, names of tasks, or files; one or a list."""
    data: str | None = None
    """Folder of the tasks' data, as seen from the study's folder."""
    limit: Positive | None = None
    """Most documents of a task."""
    shots: Count = 0
    """Answered examples before each document."""
    attention: Annotated[tuple[Literal["prefix", "causal"], ...], Field(strict=False), BeforeValidator(_words)] = ()
    """How contexts are read: one way or both, each by itself; as in training if left out."""
    every_checkpoint: bool = False
    """Ask all checkpoints that the runs kept (`keep_every`), not the last ones alone."""


class StudyFile(Strict):
    """The keys of STUDY.yaml."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    """Name of the study: its runs are in runs/NAME unless --runs says otherwise."""
    recipe: str
    """Recipe of every run: a name in pretrain/recipes/, or a path from the study's folder."""
    ds_config: str | None = None
    """A path from the study's folder; RECIPE.json beside the recipe, or else in ds_configs, if left out."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)]
    """Every method runs once with each. Runs with the same seed have the same initial weights, data and data order, so that they
    are compared in pairs."""
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """What is compared, by a name of your choice: the keys of "progressive_subnetwork". `flops_of: OTHER` beside them trains for
    as many steps as take the layer FLOPs of that method's run; `options: {...}` changes settings for this method alone."""
    sizes: dict[str, dict[str, Any] | None] = {}
    """Models to repeat all of it with: for each name the options that make it. One, the recipe's, if left out."""
    options: dict[str, Any] = {}
    """Settings of every run, written as on the command line without the dashes, as `steps: 1200` or `ds.optimizer.params.lr:
    3e-3`."""
    baseline: str | None = None
    """The method that the others are compared with; the first one if left out."""
    processes: Positive = 1
    """Ranks of every run."""
    evaluate: EvaluateKeys | None = None
    """Tasks that every run is put to when it has finished."""


@dataclass(frozen=True)
class Planned:
    """A run that a study asks for."""

    size: str
    method: str
    """The name that the study gives it."""
    seed: int
    run: Run

    @property
    def name(self) -> str:
        """Name of its folder."""
        return "-".join([*([self.size] if self.size else []), self.method, f"seed{self.seed}"])

    @property
    def key(self) -> tuple[str, str, int]:
        return self.size, self.method, self.seed


@dataclass(frozen=True)
class Study:
    """What a file asks for, checked."""

    file: Path
    name: str
    baseline: str
    processes: int
    planned: tuple[Planned, ...]
    """Seed by seed, so that an unfinished study has whole pairs to compare."""
    evaluate: EvaluateKeys | None = None

    @property
    def rows_file(self) -> Path:
        """A row for every run that has finished; meant to be committed beside the study."""
        return self.file.with_name(f"{self.file.stem}.rows.jsonl")

    @property
    def evals_file(self) -> Path:
        """A row for every task that a run was put to."""
        return self.file.with_name(f"{self.file.stem}.evals.jsonl")


def read_study(file: Path, overrides: Sequence[tuple[str, str]] = ()) -> Study:
    """Read a study and check all of its runs.

    Args:
        overrides: pairs of an option and its value, which hold for every run.

    Raises:
        UserError: the first thing that is wrong.
    """
    asked = parse(StudyFile, read_yaml(file), str(file))
    for kind, names in (("methods", asked.methods), ("sizes", asked.sizes)):
        for name in names:
            if not re.fullmatch(NAME, name):
                raise UserError(
                    f'{file}: key "{kind}": "{name}" goes into the names of folders; use letters, digits, dots and underscores'
                )
    for option, _ in overrides:
        if (key := _decided_by(option)) is not None:
            raise UserError(f'{COMMAND_LINE}: option "{option}": {file} decides that by its key "{key}"')
    if len(set(asked.seeds)) < len(asked.seeds):
        raise UserError(f'{file}: key "seeds": {list(asked.seeds)} names one twice')
    baseline = asked.baseline or next(iter(asked.methods))
    if baseline not in asked.methods:
        raise UserError(f'{file}: key "baseline": no method is called "{baseline}"{did_you_mean(baseline, asked.methods)}')
    planned = tuple(
        Planned(size, method, seed, _run(file, asked, size, method, seed, overrides))
        for seed in asked.seeds
        for size in asked.sizes or {"": {}}
        for method in asked.methods
    )
    return Study(file, asked.name, baseline, asked.processes, planned, asked.evaluate)


def _run(
    file: Path,
    asked: StudyFile,
    size: str,
    method: str,
    seed: int,
    overrides: Sequence[tuple[str, str]],
    among: tuple[str, ...] = (),
) -> Run:
    """among: methods whose length waits for this one's."""
    block = dict(asked.methods[method])
    own, flops_of = block.pop("options", {}), block.pop("flops_of", None)
    if not isinstance(own, dict):
        raise UserError(f'{file}: key "methods.{method}.options": expected settings and values')
    if "method" not in block:
        raise UserError(f'{file}: key "methods.{method}.method" is missing')
    pairs, place_of = {"--eval_parts": "true"}, dict[str, str]()
    for where, options in (
        ("options", asked.options),
        (f"sizes.{size}", asked.sizes.get(size) or {}),
        (f"methods.{method}.options", own),
    ):
        more = dict(_pair(file, where, name, value) for name, value in options.items())
        for option in more:
            if (key := _decided_by(option)) is not None:
                raise UserError(f'{file}: key "{where}": {option.removeprefix("--")} is decided by the study\'s key "{key}"')
            if where.startswith("methods") and option.startswith(SAME_FOR_ALL):
                raise UserError(
                    f'{file}: key "{where}": methods are compared with the same data and model; set {option.removeprefix("--")}'
                    ' under "options" or "sizes"'
                )
        pairs |= more
        place_of |= dict.fromkeys(more, where)
    pairs |= dict(overrides)
    pairs |= {
        "--seed": str(seed),
        "--name": f"{asked.name}: {method}, seed {seed}",
        "--ds.progressive_subnetwork": json.dumps(block),
    }

    def read(steps: int | None = None) -> Run:
        recipe = file.parent / asked.recipe
        ds_config = None if asked.ds_config is None else str(file.parent / asked.ds_config)
        longer = {} if steps is None else {"--steps": str(steps)}
        try:
            return read_run(
                str(recipe) if recipe.is_file() else asked.recipe, list((pairs | longer).items()), ds_config, asked.processes
            )
        except UserError as error:
            told = re.sub(rf" with {COMMAND_LINE}( --[\w.-]+)+", " and the study's options", str(error)).replace(
                f"{COMMAND_LINE}: ", ""
            )
            place = next(
                (f'key "{where}"' for option, where in place_of.items() if f'option "{option}"' in told), f"method {method}"
            )
            raise UserError(f"{file}: {place}: {told}") from None

    if flops_of is None:
        return read()
    if not isinstance(flops_of, str) or flops_of not in asked.methods:
        raise UserError(
            f'{file}: key "methods.{method}.flops_of": no method is called'
            f' "{flops_of}"{did_you_mean(str(flops_of), asked.methods)}'
        )
    if flops_of in (method, *among):
        raise UserError(f'{file}: key "methods.{method}.flops_of": {flops_of} would wait for itself')
    if "--steps" in dict(_pair(file, "", name, value) for name, value in own.items()):
        raise UserError(f'{file}: key "methods.{method}": flops_of decides the steps; remove one of the two')
    return matched(read, _run(file, asked, size, flops_of, seed, overrides, (*among, method)))


def matched(read: Callable[[int], Run], other: Run) -> Run:
    """The run that is expected to take as many layer operations as another, as nearly as whole steps can.

    The share of layers that a step runs may itself follow from the number of steps, as with `pld`, so it is looked for. Paths
    that are drawn layer by layer scatter about what is expected, over 900 steps by some 0.6 % (`ild_dts`, bench/studies).
    """

    def operations(run: Run) -> Fraction:
        return (
            run.steps
            * savings(run.method, run.recipe.shape).layer_flops
            * run.recipe.shape.layers
            * run.recipe.shape.layer()
            * run.tokens_per_step
        )

    wanted, run = operations(other), read(other.steps)
    for _ in range(20):
        steps = max(1, round(run.steps * wanted / operations(run)))
        if steps == run.steps:
            break
        run = read(steps)
    near = [run]
    for steps in (run.steps - 2, run.steps - 1, run.steps + 1, run.steps + 2):
        with suppress(UserError):  # too short for its stages, say
            near.append(read(steps))
    return min(near, key=lambda run: abs(operations(run) - wanted))


def _decided_by(option: str) -> str | None:
    """The key of a study that decides what an option would."""
    return next((key for decided, key in DECIDED.items() if option == decided or option.startswith(decided + ".")), None)


def _pair(file: Path, where: str, name: object, value: object) -> tuple[str, str]:
    """An option as the command line has it."""
    if not isinstance(name, str):
        raise UserError(f'{file}: key "{where}": {name!r} is not the name of a setting')
    return "--" + name.replace("-", "_"), value if isinstance(value, str) else json.dumps(value)
