"""Options of the command line that stand for settings: which there are, and pairs of name and value."""

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.recipe import Recipe
from pretrain.config.strict import COMMAND_LINE, Strict, did_you_mean, section_of
from pretrain.errors import UserError

OF_LAUNCHERS = {
    "local-rank": "torch.distributed.launch passes it; start with torchrun, which says it in the environment",
    "deepspeed": "DeepSpeed is always used; its JSON is named by --ds-config",
    "deepspeed-config": "write --ds-config FILE.json",
}
"""Options that launchers and other programs are used to."""


def all_settings() -> Iterator[tuple[str, str]]:
    """Every option that recipe and JSON give rise to, with its meaning."""
    yield from _settings(Recipe, "--")
    yield from _settings(DeepSpeedConfig, "--ds.")


def option_pairs(words: Sequence[str], fixed: Sequence[str] = ()) -> list[tuple[str, str]]:
    """`--name value` and `--name=value` as pairs, in order, with a first look at whether they can exist.

    Args:
        fixed: names of the command's own options, to be suggested where one is misspelt.

    Raises:
        UserError: no option, an unknown one, one without a value, or one given twice.
    """
    known = list(dict.fromkeys([*(name.replace("_", "-") for name in Recipe.model_fields), "tokens", "ds", *fixed]))
    pairs: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option == "--":
            raise UserError(f'{COMMAND_LINE}: unexpected "{word}"; options are written --name value')
        top, *deeper = option.removeprefix("--").split(".")
        top = top.replace("_", "-")
        if top in OF_LAUNCHERS:
            raise UserError(f'{COMMAND_LINE}: option "{option}": {OF_LAUNCHERS[top]}')
        if top not in known:
            full = [key for key, _ in all_settings() if key.endswith("." + top.replace("-", "_"))]
            hint = f'; did you mean "{full[0]}"?' if full and not deeper else did_you_mean(top, known, "--", deeper)
            raise UserError(f'{COMMAND_LINE}: unknown option "{option}"{hint}')
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f'{COMMAND_LINE}: option "{option}" needs a value')
        name = "--" + option.removeprefix("--").replace("-", "_")
        if name in pairs:
            raise UserError(f'{COMMAND_LINE}: option "{option}" is given twice; give it once')
        pairs[name] = value
    if "--tokens" in pairs and "--steps" in pairs:
        raise UserError(f"{COMMAND_LINE}: --tokens and --steps both set the length of the run; give one")
    return list(pairs.items())


def _settings(model: type[Strict], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        section = section_of(model, name)
        if section is None or not (field.annotation is section or field.discriminator):
            default = "" if field.is_required() else f"; default {_in_words(field.get_default(call_default_factory=True))}"
            yield prefix + name, f"{' '.join((field.description or '').split())} [{_kind(field.annotation)}{default}]"
        if section is not None and not _is_list(model, name):
            yield from _settings(section, f"{prefix}{name}.")


def _kind(annotation: object) -> str:
    """Return what a field takes, in words: choices, a type, or several."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is Annotated:
        return _kind(inner[0])
    if origin is tuple:
        return "list"
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_kind(part) for part in inner if part is not type(None)))
    names: dict[object, str] = {bool: "true | false", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, "section")


def _in_words(value: object) -> str:
    """Return a default as a file or the command line would say it."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_in_words, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_list(model: type[Strict], name: str) -> bool:
    return getattr(model.model_fields[name].annotation, "__origin__", None) is tuple
