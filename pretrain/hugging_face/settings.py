"""What a config.json says of a model, in the words of a recipe."""

import json
from pathlib import Path
from typing import Any

from pretrain.config.model import Model, RopeScaling
from pretrain.config.recipe import Recipe
from pretrain.errors import UserError, one_line
from pretrain.hugging_face.architectures import BERT, DECODERS

TYPES = {one.type: [other.name for other in DECODERS if other.type == one.type][0] for one in DECODERS} | {"megatron-bert": BERT}
"""Classes by model_type."""
REFUSED = {
    "quantization_config": "quantized weights are not read",
    "partial_rotary_factor": "all of a head is turned here",
    "attention_factor": "attention is sharpened as YaRN's paper says",
    "mscale": "attention is sharpened as YaRN's paper says",
}
"""Keys that change what a model computes in ways that are not here."""
DECIDING = (
    "num_layers", "hidden_size", "num_attention_heads", "groups", "head_size", "ffn_hidden_size", "tied_embeddings", "qk_norm",
    "biases", "norm", "norm_placement", "norm_epsilon", "feed_forward", "position_embedding", "head", "embedding_scale",
    "logit_softcap",
)  # fmt: skip
"""What a recipe must say as a folder does."""
SPELT = {"groups": "num_query_groups", "head_size": "head_dim"}
"""Keys of a recipe that say it, where they are called otherwise."""
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        UserError: there is none, it is damaged, or of a model that is not read.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read ({one_line(error)}); give a folder as transformers' save_pretrained writes"
        ) from None
    if config.get("model_type") not in TYPES:
        raise UserError(
            f'{file}: "model_type" {json.dumps(config.get("model_type"))} is not read; {", ".join(TYPES)} are, which are'
            f" {', '.join(dict.fromkeys(TYPES.values()))}"
        )
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    for key, why in REFUSED.items():
        value = config.get(key, scaling.get(key))
        if value is not None and value != 1:
            raise UserError(f'{file}: "{key}" {json.dumps(value)}: {why}')
    if missing := [key for key in REQUIRED if not isinstance(config.get(key), int)]:
        raise UserError(f'{file}: has no "{missing[0]}", a whole number')
    return config


def model_keys(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return keys of a recipe's `model` that describe the same, as a YAML file has them; the vocabulary is the tokenizer's.

    Raises:
        UserError: the config describes something that is not here.
    """
    shared = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "ffn_hidden_size": config["intermediate_size"],
        "init_std": config.get("initializer_range", 0.02),
    }
    if config["model_type"] == "megatron-bert":
        _require(folder, config, "hidden_act", "gelu")
        bert = {"norm": "layernorm", "feed_forward": "gelu", "biases": True, "position_embedding": "learned", "head": "transform"}
        return {
            **shared,
            **bert,
            "norm_epsilon": config.get("layer_norm_eps", 1e-12),
            "tied_embeddings": config.get("tie_word_embeddings", True),
        }
    _require(folder, config, "hidden_act", "silu")
    _require(folder, config, "mlp_bias", False)
    biases = config["model_type"] == "qwen2" or bool(config.get("attention_bias", False))
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    keys = {
        **shared,
        "num_query_groups": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "qk_norm": {"qwen3": True, "olmo2": "whole"}.get(config["model_type"], False),
        "norm_placement": "after" if config["model_type"] == "olmo2" else "before",
        "biases": "qkv" if biases else False,
        "tied_embeddings": config.get("tie_word_embeddings", False),
        "rotary_base": _whole(rope.get("rope_theta", config.get("rope_theta", 10_000)), folder),
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
    }
    if scaling := _rope_scaling(rope, config, folder):
        keys["rope_scaling"] = scaling
    return keys


def other_class(config: dict[str, Any], keys: dict[str, Any]) -> str | None:
    """Return the class of a config where an export would be of another one that computes the same, unless told so.

    Args:
        keys: what `model_keys` makes of it.
    """
    own, told = TYPES[config["model_type"]], (keys["biases"], keys.get("qk_norm"), keys.get("norm_placement"))
    first = next((one.name for one in DECODERS if (one.biases, one.qk_norm, one.norm_placement) == told), own)
    return own if own not in (first, BERT) else None


def require_same(recipe: Recipe, config: dict[str, Any], folder: Path) -> None:
    """Refuse a folder whose model computes something else than the recipe's.

    Raises:
        UserError: names every key that differs, with what to write.
    """
    ours, keys = recipe.model, model_keys(config, folder)
    scaling = None if "rope_scaling" not in keys else RopeScaling.model_validate(keys.pop("rope_scaling"))
    sizes = {"vocab_size": ours.vocab_size, "padded_vocab_size": ours.padded_vocab_size}
    theirs = Model.model_validate({**keys, **sizes, "rope_scaling": scaling})
    rotary = ("rotary_base", "rope_scaling") if ours.position_embedding == theirs.position_embedding == "rope" else ()
    differ = [
        f"model.{SPELT.get(name, name)} is {_shown(getattr(theirs, name))} there and {_shown(getattr(ours, name))} here"
        for name in (*DECIDING, *rotary)
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if differ:
        raise UserError(f"init_from {folder}: is of another model: {'; '.join(differ)}; write what is there into the recipe")
    window, length = config.get("sliding_window"), recipe.data.sequence_length
    if window is not None and config.get("use_sliding_window", True) and window < length:
        raise UserError(
            f"init_from {folder}: its attention sees {window} positions (sliding_window), and here it sees all of"
            f" data.sequence_length {length}; lower that to {window}"
        )


def _rope_scaling(rope: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise UserError(f'{folder / "config.json"}: "rope_type" {json.dumps(kind)} is not here; linear, llama3 and yarn are')
    names = {"factor": "factor", "original_max_position_embeddings": "original_length"} | {
        "llama3": {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
        "yarn": {"beta_fast": "beta_fast", "beta_slow": "beta_slow"},
        "linear": {},
    }[kind]
    found = {ours: rope[theirs] for theirs, ours in names.items() if rope.get(theirs) is not None}
    if kind != "linear":  # transformers takes the length that the model has now, where nothing else is said
        found.setdefault("original_length", config.get("max_position_embeddings"))
    return {"type": kind, **{name: value if name == "original_length" else float(value) for name, value in found.items()}}


def _require(folder: Path, config: dict[str, Any], key: str, value: object) -> None:
    if config.get(key, value) != value:
        raise UserError(f'{folder / "config.json"}: "{key}" {json.dumps(config[key])} is not here; only {json.dumps(value)} is')


def _whole(value: object, folder: Path) -> int:
    if not isinstance(value, (int, float)) or value != int(value):
        raise UserError(f'{folder / "config.json"}: "rope_theta" {json.dumps(value)} is no whole number')
    return int(value)


def _shown(value: object) -> str:
    return str(value.model_dump()) if isinstance(value, RopeScaling) else json.dumps(value)
