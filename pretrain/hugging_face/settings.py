"""What a config.json says of a model, in the words of a recipe."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretrain.config.model import Model, RopeScaling
from pretrain.config.recipe import Recipe
from pretrain.errors import UserError, reason
from pretrain.hugging_face.architectures import BERT, DECODERS

TYPES = {one.type: one.name for one in DECODERS} | {"megatron-bert": BERT}
"""Classes by model_type."""
ROPE_KEYS = {
    "linear": {},
    "llama3": {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "yarn": {"beta_fast": "beta_fast", "beta_slow": "beta_slow"},
}
"""Keys of a scaling of rotary frequencies, theirs and ours, beside those that all have."""
WITHOUT_EFFECT = {"partial_rotary_factor": 1, "truncate": True}
"""Keys of rotary positions, with the values that say what is done here."""
DECIDING = (
    "num_layers", "hidden_size", "num_attention_heads", "groups", "head_size", "ffn_hidden_size", "tied_embeddings", "qk_norm",
    "biases", "norm", "norm_placement", "norm_epsilon", "feed_forward", "position_embedding", "head", "embedding_scale",
    "logit_softcap",
)  # fmt: skip
"""What a recipe must say as a folder does."""
SPELT = {"groups": "num_query_groups", "head_size": "head_dim"}
"""Keys of a recipe that say it, where they are called otherwise."""
MISTRALS_WINDOW = 4096
"""Positions that attention sees where a config of Mistral's does not say: transformers' default."""
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
WHOLE_NUMBERS = (*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
SWITCHES = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
"""Keys of config.json by what they must be, where they are there."""


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
            f"{file}: cannot be read ({reason(error)}); give a folder on this machine as save_pretrained writes it, or as"
            " `hf download NAME --local-dir FOLDER` brings it"
        ) from None
    if config.get("model_type") not in TYPES:
        raise UserError(
            f'{file}: "model_type" {json.dumps(config.get("model_type"))} is not read; {", ".join(TYPES)} are, which are'
            f" {', '.join(dict.fromkeys(TYPES.values()))}"
        )
    if config.get("quantization_config") is not None:
        raise UserError(f'{file}: "quantization_config": quantized weights are not read; save the model without')
    if missing := [key for key in REQUIRED if config.get(key) is None]:
        raise UserError(f'{file}: has no "{missing[0]}", a whole number')
    for keys, kind, called in ((WHOLE_NUMBERS, int, "a whole number"), (SWITCHES, bool, "true or false")):
        for key in keys:
            if config.get(key) is not None and type(config[key]) is not kind:
                raise UserError(f'{file}: "{key}" {json.dumps(config[key])} is not {called}')
    return config


def model_keys(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return keys of a recipe's `model` that describe the same, as a YAML file has them; the vocabulary is the tokenizer's.

    Raises:
        UserError: the config describes something that is not here, or nothing that can be.
    """
    try:
        keys = _model_keys(config, folder)
        _as_model(keys, vocabulary=1, padded=1)
        return keys
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, KeyError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise UserError(f"{folder / 'config.json'}: describes no model that can be ({what})") from None


def _as_model(keys: dict[str, Any], vocabulary: int, padded: int) -> Model:
    scaling = None if "rope_scaling" not in keys else RopeScaling.model_validate(keys["rope_scaling"])
    return Model.model_validate({**keys, "vocab_size": vocabulary, "padded_vocab_size": padded, "rope_scaling": scaling})


def _model_keys(config: dict[str, Any], folder: Path) -> dict[str, Any]:
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
    for key, value in WITHOUT_EFFECT.items():
        if config.get(key, rope.get(key, value)) not in (None, value):
            raise UserError(f'{folder / "config.json"}: "{key}" is not here, but {json.dumps(value)}')
    groups = config.get("num_key_value_heads")
    if groups is None and config["model_type"] not in ("llama", "olmo2"):  # others have defaults that do not follow from heads
        raise UserError(f'{folder / "config.json"}: has no "num_key_value_heads"')
    own_head = 128 if config["model_type"] == "qwen3" else config["hidden_size"] // config["num_attention_heads"]
    keys = {
        **shared,
        "num_query_groups": groups or config["num_attention_heads"],
        "head_dim": config.get("head_dim") or own_head,
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
    theirs = _as_model(keys, ours.vocab_size, ours.padded_vocab_size)
    rotary = ("rotary_base", "rope_scaling") if ours.position_embedding == theirs.position_embedding == "rope" else ()
    differ = [
        f"model.{SPELT.get(name, name)} is {_shown(getattr(theirs, name))} there and {_shown(getattr(ours, name))} here"
        for name in (*DECIDING, *rotary)
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if differ:
        raise UserError(f"init_from {folder}: is of another model: {'; '.join(differ)}; write what is there into the recipe")
    default = MISTRALS_WINDOW if config["model_type"] == "mistral" else None
    window, length = config.get("sliding_window", default), recipe.data.sequence_length
    if window is not None and config.get("use_sliding_window", True) and window < length:
        raise UserError(
            f"init_from {folder}: its attention sees {window} positions (sliding_window), and here it sees all of"
            f" data.sequence_length {length}; lower that to {window}"
        )


def _rope_scaling(rope: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ROPE_KEYS:
        raise UserError(f'{folder / "config.json"}: "rope_type" {json.dumps(kind)} is not here; linear, llama3 and yarn are')
    names = {"factor": "factor", "original_max_position_embeddings": "original_length"} | ROPE_KEYS[kind]
    known = {"rope_type", "type", "rope_theta", *WITHOUT_EFFECT, *names}
    if others := sorted(key for key, value in rope.items() if key not in known and value is not None):
        raise UserError(f'{folder / "config.json"}: "{others[0]}" of rotary positions of type {kind} is not here')
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
