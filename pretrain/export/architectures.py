"""Our weights under transformers' names: LlamaForCausalLM for decoders, MegatronBertForMaskedLM for BERT."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.config.recipe import Model, Recipe
from pretrain.errors import UserError

Whole = Callable[[str], np.ndarray]
"""A parameter in full, by our name."""
TOKEN_TYPES = 2
"""Texts of a pair, in BERT."""
Weights = Iterator[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Architecture:
    """How a recipe's model is called elsewhere."""

    name: str
    config: dict[str, Any]
    weights: Callable[[Whole], Weights]


def architecture_of(recipe: Recipe, special: dict[str, int]) -> Architecture:
    """The class of transformers that computes the same.

    Args:
        special: ids of the tokenizer's special pieces, by transformers' names, as pad_token_id.

    Raises:
        UserError: there is none.
    """
    model = recipe.model
    shared = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": recipe.data.sequence_length,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
        **special,
    }
    wanted = {
        "LlamaForCausalLM": ("rmsnorm", "swiglu", False, "rope", "linear"),
        "MegatronBertForMaskedLM": ("layernorm", "gelu", True, "learned", "transform"),
    }
    ours = (model.norm, model.feed_forward, model.biases, model.position_embedding, model.head)
    export_as = recipe.data.made_as.export_as
    if export_as == "LlamaForCausalLM" and ours == wanted[export_as]:
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon,
            "rope_theta": float(model.rotary_base),
            "num_key_value_heads": model.num_attention_heads,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
        }
        return Architecture("LlamaForCausalLM", {**shared, **config}, lambda whole: _llama(model, whole))
    if export_as == "MegatronBertForMaskedLM" and ours == wanted[export_as] and model.tied_embeddings:
        config = {
            "architectures": ["MegatronBertForMaskedLM"],
            "model_type": "megatron-bert",
            "hidden_act": "gelu",
            "layer_norm_eps": model.norm_epsilon,
            "type_vocab_size": TOKEN_TYPES,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        return Architecture("MegatronBertForMaskedLM", {**shared, **config}, lambda whole: _bert(model, whole))
    raise UserError(
        f"no class of transformers is this model (norm {model.norm}, feed_forward {model.feed_forward}, biases {model.biases},"
        f" position_embedding {model.position_embedding}, head {model.head}, objective {recipe.data.objective}); recipes like"
        " ul2_*, gpt_* become LlamaForCausalLM, recipes like bert_* MegatronBertForMaskedLM"
    )


def _llama(model: Model, whole: Whole) -> Weights:
    yield "model.embed_tokens.weight", whole("embedding.word_embeddings.weight")[: model.vocab_size]
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        yield theirs + "input_layernorm.weight", whole(ours + "input_layernorm.weight")
        for name, part in zip("qkv", _queries_keys_values(model, whole(ours + "self_attention.linear_qkv.weight"))):
            yield f"{theirs}self_attn.{name}_proj.weight", part
        yield theirs + "self_attn.o_proj.weight", whole(ours + "self_attention.linear_proj.weight")
        yield theirs + "post_attention_layernorm.weight", whole(ours + "pre_mlp_layernorm.weight")
        gate, up = np.split(whole(ours + "mlp.linear_fc1.weight"), 2)
        yield theirs + "mlp.gate_proj.weight", gate
        yield theirs + "mlp.up_proj.weight", up
        yield theirs + "mlp.down_proj.weight", whole(ours + "mlp.linear_fc2.weight")
    yield "model.norm.weight", whole("decoder.final_layernorm.weight")
    if not model.tied_embeddings:
        yield "lm_head.weight", whole("output_layer.weight")[: model.vocab_size]


def _bert(model: Model, whole: Whole) -> Weights:
    words = whole("embedding.word_embeddings.weight")[: model.vocab_size]
    yield "bert.embeddings.word_embeddings.weight", words
    yield "bert.embeddings.position_embeddings.weight", whole("embedding.position_embeddings.weight")
    # There are none here. Rows of zeros change nothing, and two can learn to differ where pairs of texts are to be told apart.
    yield "bert.embeddings.token_type_embeddings.weight", np.zeros((TOKEN_TYPES, model.hidden_size), dtype=np.float32)
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}.", f"bert.encoder.layer.{layer}."
        same = {
            "attention.ln": "input_layernorm",
            "attention.output.dense": "self_attention.linear_proj",
            "ln": "pre_mlp_layernorm",
            "intermediate.dense": "mlp.linear_fc1",
            "output.dense": "mlp.linear_fc2",
        }
        for kind in ("weight", "bias"):
            for there, here in same.items():
                yield f"{theirs}{there}.{kind}", whole(f"{ours}{here}.{kind}")
            parts = _queries_keys_values(model, whole(f"{ours}self_attention.linear_qkv.{kind}"))
            for name, part in zip(("query", "key", "value"), parts):
                yield f"{theirs}attention.self.{name}.{kind}", part
    for kind in ("weight", "bias"):
        yield f"bert.encoder.ln.{kind}", whole(f"decoder.final_layernorm.{kind}")
        yield f"cls.predictions.transform.dense.{kind}", whole(f"head.dense.{kind}")
        yield f"cls.predictions.transform.LayerNorm.{kind}", whole(f"head.norm.{kind}")
    yield "cls.predictions.bias", whole("head.bias")[: model.vocab_size]


def _queries_keys_values(model: Model, together: np.ndarray) -> Iterator[np.ndarray]:
    """Megatron-Core keeps query, key and value of a head together; [heads * 3 * d, ...] becomes three of [heads * d, ...]."""
    d = model.hidden_size // model.num_attention_heads
    apart = together.reshape(model.num_attention_heads, 3, d, *together.shape[1:])
    for index in range(3):
        yield np.ascontiguousarray(apart[:, index].reshape(model.hidden_size, *together.shape[1:]))
