"""Recipes and JSON files for people to edit: what they hold, with what it means beside it."""

import json
import re
import textwrap
from collections.abc import Mapping, Set
from typing import Any

import yaml

from pretrain.config.recipe import Recipe
from pretrain.config.strict import section_of
from pretrain.schema import Strict
from pretrain.subnetwork.methods import METHODS

WIDTH = 100
STEP = 16
"""What a feed-forward width that follows another is a multiple of."""
MANY_STEPS = 100_000
"""Enough for any number of stages."""


def recipe_text(data: Mapping[str, Any], remark: str) -> str:
    """Return a recipe as YAML, each key under a comment that says what it means.

    Args:
        data: as read from a recipe's file.
        remark: what stands above it all.
    """
    return "\n".join([*_comment(remark, ""), *_section(data, Recipe, "")]) + "\n"


def _section(data: Mapping[str, Any], model: type[Strict], indent: str) -> list[str]:
    lines = []
    for key, value in data.items():
        section = section_of(model, key) if isinstance(value, Mapping) else None
        if section is not None:
            lines += [f"{indent}{key}:", *_section(value, section, indent + "  ")]
            continue
        lines += _comment(" ".join((model.model_fields[key].description or "").split()), indent)
        written = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        lines.append(f"{indent}{key}: {written.removesuffix('...' + chr(10)).strip()}")
    return lines


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False)


def scaled_paths(block: dict[str, Any], before: int, layers: int) -> dict[str, Any]:
    """Return a method's block of a model of `before` layers for one of `layers`: path lengths of the same shares, balanced over
    as many groups as there were, or as can be."""
    lengths = block.get("path_lengths")
    if before == layers or lengths is None:
        return block
    former = [int(length) for length in lengths.split("-")] if isinstance(lengths, str) else lengths
    scaled = [max(1, round(length * layers / before)) for length in former]
    scaled = sorted({*scaled[:-1], layers})
    block = {**block, "path_lengths": "-".join(map(str, scaled))}
    if len(scaled) != len(former):  # stages have become one
        block.pop("stage_fractions", None)
    for groups in range(block.get("balance_groups", 1), 0, -1):
        fitting = {**block, "balance_groups": groups} if "balance_groups" in block else block
        try:
            METHODS[block["method"]].model_validate(fitting).build(layers, MANY_STEPS, 0)
            return fitting
        except ValueError:
            continue
    return block  # whoever checks the run says what is wrong


def fitted(model: dict[str, Any], before: Mapping[str, Any], given: Set[str]) -> dict[str, Any]:
    """Return a model whose width or heads a person has changed, with what goes with them in proportion, unless it is given too.

    Args:
        before: as it was.
        given: keys that the person has set.
    """
    model = dict(model)
    if "hidden_size" in given and "ffn_hidden_size" not in given:
        share = model["hidden_size"] / before["hidden_size"]
        model["ffn_hidden_size"] = max(STEP, round(before["ffn_hidden_size"] * share / STEP) * STEP)
    if given & {"hidden_size", "num_attention_heads"} and "head_dim" not in given:
        model.pop("head_dim", None)
    if "num_attention_heads" in given and "num_query_groups" not in given and "num_query_groups" in before:
        share = before["num_attention_heads"] // before["num_query_groups"]
        model["num_query_groups"] = max(1, model["num_attention_heads"] // share)
    return model


def json_text(data: Mapping[str, Any]) -> str:
    """Return a DeepSpeed JSON; its format has no comments, `train --explain` says what keys mean."""
    lines = json.dumps(data, indent=2)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: json.dumps(json.loads(found[0])), lines) + "\n"
