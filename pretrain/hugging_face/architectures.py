"""The classes of transformers that compute what a recipe's model computes."""

from dataclasses import dataclass, field
from typing import Any

from pretrain.config.model import Model, RopeScaling
from pretrain.config.recipe import Recipe
from pretrain.errors import UserError
from pretrain.hugging_face.tensors import Table, bert_table, decoder_table

TOKEN_TYPES = 2
"""Texts of a pair, in BERT."""
TOKEN_TYPE_ROWS = "bert.embeddings.token_type_embeddings.weight"
"""Which text of a pair a token is of, added to its embedding."""
BERT = "MegatronBertForMaskedLM"


@dataclass(frozen=True)
class DecoderClass:
    """One of Llama's kin."""

    name: str
    type: str
    biases: bool | str
    qk_norm: bool | str
    settings: dict[str, Any]
    """Keys of its config.json that no other has, or that decide which biases there are."""
    output_bias: bool = False
    """Whether the matrix behind attention has a bias where those of queries, keys and values have one."""
    norm_placement: str = "before"

    def computes(self, model: Model) -> bool:
        """Whether it can compute what a model does."""
        return (self.biases, self.qk_norm, self.norm_placement) == (model.biases, model.qk_norm, model.norm_placement)


DECODERS = (
    DecoderClass("LlamaForCausalLM", "llama", False, False, {"attention_bias": False, "mlp_bias": False}),
    DecoderClass("MistralForCausalLM", "mistral", False, False, {"sliding_window": None}),
    DecoderClass("Qwen3ForCausalLM", "qwen3", False, True, {"attention_bias": False, "use_sliding_window": False}),
    DecoderClass("Olmo2ForCausalLM", "olmo2", False, "whole", {"attention_bias": False}, norm_placement="after"),
    DecoderClass("LlamaForCausalLM", "llama", "qkv", False, {"attention_bias": True, "mlp_bias": False}, output_bias=True),
    DecoderClass("Qwen2ForCausalLM", "qwen2", "qkv", False, {"use_sliding_window": False}),
)
"""The first that computes what a model does is written unless another is asked for: not Qwen2's, whose folders transformers
reads with Qwen's own tokenizer, whatever they say."""


@dataclass(frozen=True)
class Architecture:
    """How a recipe's model is called elsewhere."""

    name: str
    config: dict[str, Any]
    table: Table
    zeros: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors that the class has and the model has not, with their shapes. Of zeros they change nothing."""


def architecture_of(recipe: Recipe, special: dict[str, int | None], wanted: str | None = None) -> Architecture:
    """The class of transformers that computes the same.

    Args:
        special: ids of the tokenizer's special pieces, by transformers' names, as pad_token_id.
        wanted: a class, where several compute the same.

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
        "max_position_embeddings": _positions(recipe),
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
        **special,
    }
    if model.embedding_scale != 1 or model.logit_softcap is not None:
        raise UserError("no class of transformers that is exported to has an embedding_scale or a logit_softcap; train without")
    export_as = recipe.data.made_as.export_as
    found = [one for one in DECODERS if one.computes(model)]
    if export_as == "LlamaForCausalLM" and _is_decoder(model) and found:
        chosen = next((one for one in found if wanted in (None, one.name)), None)
        if chosen is None:
            raise UserError(f"no {wanted} computes what this model does; {' and '.join(one.name for one in found)} do")
        return Architecture(
            chosen.name,
            {**shared, **_decoder_config(model, chosen)},
            decoder_table(model, model.vocab_size),
            output_biases(model) if chosen.output_bias else {},
        )
    if export_as == BERT and _is_bert(model) and wanted in (None, BERT):
        config = {
            "architectures": [BERT],
            "model_type": "megatron-bert",
            "hidden_act": "gelu",
            "layer_norm_eps": model.norm_epsilon,
            "type_vocab_size": TOKEN_TYPES,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        # Of token types there are none here. Rows of zeros can learn to differ where pairs of texts are to be told apart.
        return Architecture(
            BERT,
            {**shared, **config},
            bert_table(model, model.vocab_size, recipe.data.sequence_length),
            {TOKEN_TYPE_ROWS: (TOKEN_TYPES, model.hidden_size)},
        )
    raise UserError(
        f"no class of transformers{f' called {wanted}' if wanted else ''} is this model (norm {model.norm}, feed_forward"
        f" {model.feed_forward}, biases {model.biases}, qk_norm {model.qk_norm}, norm_placement {model.norm_placement},"
        f" position_embedding {model.position_embedding}, head {model.head}, objective {recipe.data.objective}); recipes like"
        " ul2_*, gpt_* become LlamaForCausalLM, with qk_norm Qwen3ForCausalLM; recipes like bert_* MegatronBertForMaskedLM"
    )


def _is_decoder(model: Model) -> bool:
    return (model.norm, model.feed_forward, model.position_embedding, model.head) == ("rmsnorm", "swiglu", "rope", "linear")


def _is_bert(model: Model) -> bool:
    ours = (model.norm, model.feed_forward, model.position_embedding, model.head)
    plain = (
        model.biases is True
        and model.norm_placement == "before"
        and not model.qk_norm
        and model.query_size == model.key_size == model.hidden_size
    )
    return ours == ("layernorm", "gelu", "learned", "transform") and plain and model.tied_embeddings


def _decoder_config(model: Model, chosen: DecoderClass) -> dict[str, Any]:
    return {
        "architectures": [chosen.name],
        "model_type": chosen.type,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "num_key_value_heads": model.groups,
        "head_dim": model.head_size,
        "rope_theta": float(model.rotary_base),
        "rope_scaling": _rope_scaling(model.rope_scaling),
        **chosen.settings,
    }


def _positions(recipe: Recipe) -> int:
    """How many positions a config says that there are. Some versions of transformers take YaRN's factor from it."""
    scaling = recipe.model.rope_scaling
    if scaling is None or scaling.type != "yarn" or scaling.original_length is None:
        return recipe.data.sequence_length
    return round(scaling.factor * scaling.original_length)


def output_biases(model: Model) -> dict[str, tuple[int, ...]]:
    """Return Llama's biases behind attention, with their shapes."""
    return {f"model.layers.{layer}.self_attn.o_proj.bias": (model.hidden_size,) for layer in range(model.num_layers)}


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Return transformers' words for changed rotary frequencies."""
    if scaling is None:
        return None
    own = {
        "linear": {},
        "llama3": {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor},
        "yarn": {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow},
    }[scaling.type]
    before = {} if scaling.original_length is None else {"original_max_position_embeddings": scaling.original_length}
    return {"rope_type": scaling.type, "factor": scaling.factor, **before, **own}
