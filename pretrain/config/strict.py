"""Strict reading: every key is known, every error names the file, the key and what to write instead."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from pretrain.errors import UserError, one_line, reason
from pretrain.schema import Strict

COMMAND_LINE = "command line"
MOST_DIGITS = 100
"""Digits of a whole number in JSON; Python refuses some thousand, with another word for it."""


M = TypeVar("M", bound=Strict)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        UserError: not readable, not YAML, not a mapping, or a key written twice.
    """
    text = _text(path)
    try:
        data = yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {place}{error.problem}") from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML that can be read: {one_line(error)}") from None
    return _mapping(path, data)


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file.

    Raises:
        UserError: not readable, not JSON (with line and column), not a mapping, or a key written twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f'{path}: key "{key}" is written twice; keep one')
            found[key] = value
        return found

    def integer(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise UserError(f"{path}: a number of {len(digits)} digits, {digits[:12]}...; no setting is that large")
        return int(digits)

    try:
        data = json.loads(_text(path), object_pairs_hook=unique, parse_int=integer)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON that can be read: {one_line(error)}") from None
    return _mapping(path, data)


def parse(model: type[M], data: dict[str, Any], source: str) -> M:
    """`data` as a `model`.

    Raises:
        UserError: the first unknown key or wrong value, with the closest valid key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(error, model, source)) from None


def set_key(data: dict[str, Any], model: type[Strict], key: str, value: str, option: str) -> None:
    """Set dotted `key` of `data` to `value`, for `option` of the command line, which ends in `key`.

    Raises:
        UserError: `model` has no such key.
    """
    names = key.split(".")
    section: type[Strict] | None = model
    parent = model
    for depth, name in enumerate(names):
        written = option.removesuffix(key) + "".join(part + "." for part in names[:depth])
        if section is None:
            raise UserError(f'{COMMAND_LINE}: unknown option "{option}": "{written[:-1]}" has no keys of its own')
        if name not in section.model_fields:
            raise UserError(f'{COMMAND_LINE}: unknown option "{option}"' + _unknown(name, section, written))
        parent, section = section, section_of(section, name)
    for name in names[:-1]:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise UserError(f'{COMMAND_LINE}: option "{option}": "{name}" is a value in the file, not a section')
    leaf = parent.model_fields[names[-1]].annotation
    data[names[-1]] = _value(value, option) if value == "null" or not _is_text(leaf) else value


def _is_text(annotation: Any) -> bool:
    """Whether a field takes text, and nothing else but perhaps None: a name of digits is no number."""
    kinds = set(get_args(annotation)) if isinstance(annotation, UnionType) else {annotation}
    return str in kinds and kinds <= {str, type(None)}


def _value(text: str, option: str) -> Any:
    """A value of the command line: a number, true, false or null as in JSON, a list as in YAML, else text."""
    try:
        if text.lstrip()[:1] in ("[", "{"):
            return yaml.load(text, Loader=_UniqueKeys)
        return json.loads(text)
    except yaml.YAMLError as error:
        raise UserError(f'{COMMAND_LINE}: option "{option}": {one_line(error)}') from None
    except (ValueError, RecursionError):
        return text


def section_of(model: type[Strict], name: str) -> type[Strict] | None:
    """The section type of a field, through `X | None` and `tuple[X, ...]`; None for a plain value."""

    def search(annotation: Any) -> type[Strict] | None:
        if isinstance(annotation, type) and issubclass(annotation, Strict):
            return annotation
        return next((found for part in get_args(annotation) if (found := search(part))), None)

    return search(model.model_fields[name].annotation)


def did_you_mean(key: str, valid: Iterable[str], prefix: str = "", deeper: Sequence[str] = ()) -> str:
    """`; did you mean "..."?` where something is close, else the list of what is valid. `deeper`: what follows the key."""
    valid = list(valid)
    close = difflib.get_close_matches(key.lower(), valid, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{prefix}{".".join([close[0], *deeper])}"?'
    return f"; valid here: {', '.join(sorted(valid))}"


def _unknown(key: str, section: type[Strict], prefix: str = "") -> str:
    """What to say after `unknown key`: why a known stranger is not welcome, or what was probably meant."""
    if key in section.foreign:
        return f"; {section.foreign[key]}"
    close = difflib.get_close_matches(key.lower(), [*section.model_fields, *section.foreign], n=1, cutoff=0.6)
    if close and close[0] in section.foreign:
        return f'; if you mean "{prefix}{close[0]}": {section.foreign[close[0]]}'
    return did_you_mean(key, section.model_fields, prefix)


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which the standard loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f'key "{key}" is written twice; keep one', problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 3e-4 as text; a learning rate written so is a number to everybody else.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark that means nothing
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None


def _mapping(path: Path, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values at the top level, found {type(data).__name__}")
    return data


def _explain(error: ValidationError, model: type[Strict], source: str) -> str:
    """Return one line for the first problem; unknown keys come first, because they explain what else is missing."""
    problem = min(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    names, section = _keys_to(problem["loc"], model)
    where, key = ".".join(names[:-1]), names[-1] if names else ""
    if problem["type"] == "extra_forbidden":
        place = f' in "{where}"' if where else ""
        return f'{source}: unknown key "{key}"{place}' + (_unknown(key, section) if section else "")
    if problem["type"] == "missing":
        return f'{source}: key "{".".join(names)}" is missing'
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "union_tag_invalid":  # of a block whose keys depend on one of them
        names.append(problem["ctx"]["discriminator"].strip("'"))
        message = f"input should be {' or '.join(problem['ctx']['expected_tags'].rsplit(', ', 1))}"
        problem["input"] = problem["input"].get(names[-1])
    if not names:
        return f"{source}: {message}"
    value = "null" if problem["input"] is None else repr(problem["input"])
    got = "" if isinstance(problem["input"], (dict, list, Strict)) else f", got {value}"
    return f'{source}: key "{".".join(names)}": {message[0].lower() + message[1:]}{got}'


def _keys_to(places: tuple[int | str, ...], model: type[Strict]) -> tuple[list[str], type[Strict] | None]:
    """Return the keys that lead to a problem, and the section that the last of them is in.

    Left out is what is no key: validators, and which of several kinds of block was chosen.
    """
    names: list[str] = []
    section: type[Strict] | None = model
    inner: type[Strict] | None = model
    is_choice = False
    for place in map(str, places):
        if place.startswith("function-") or is_choice:
            is_choice = False
            continue
        names.append(place)
        if place.isdigit():  # a place in a list
            continue
        section = inner
        field = section.model_fields.get(place) if section else None
        is_choice = field is not None and field.discriminator is not None
        inner = section_of(section, place) if section and field else None
    return names, section
