"""How our parameters consist of tensors under transformers' names: one table, by which weights are written and read.

Along its first dimension a parameter of ours is a row of stretches of theirs: Megatron-Core keeps the queries, key and value of a
group of heads together, and the two matrices that SwiGLU multiplies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.config.model import Model

EMBEDDING, OUTPUT, OUTPUT_BIAS = "embedding.word_embeddings.weight", "output_layer.weight", "head.bias"
POSITIONS = "embedding.position_embeddings.weight"
OF_VOCABULARY = (EMBEDDING, OUTPUT, OUTPUT_BIAS)
"""Parameters of ours with a row for each piece of the vocabulary, and more that pad it."""

NORMS_OF_BRANCHES = {
    "before": (("input_layernorm", "input_layernorm"), ("pre_mlp_layernorm", "post_attention_layernorm")),
    "after": (
        ("post_self_attn_layernorm", "post_attention_layernorm"),
        ("post_mlp_layernorm", "post_feedforward_layernorm"),
    ),
}
"""The norms of attention and of the feed-forward block, ours and theirs, by where they are."""


@dataclass(frozen=True)
class Rows:
    """Rows of one of their tensors; of a vector, elements."""

    tensor: str
    first: int
    count: int


Table = Mapping[str, Sequence[Rows]]
"""Our parameters by name, each as the rows of theirs that follow one another in it. What pads the vocabulary is not theirs."""


def decoder_table(model: Model, words: int) -> Table:
    """The table of the decoders that transformers has, Llama's kin.

    Args:
        words: pieces of the vocabulary that their matrices have rows for.
    """
    h, f = model.hidden_size, model.ffn_hidden_size
    table: dict[str, list[Rows]] = {EMBEDDING: [Rows("model.embed_tokens.weight", 0, words)]}
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        first, second = NORMS_OF_BRANCHES[model.norm_placement]
        table[f"{ours}{first[0]}.weight"] = [Rows(f"{theirs}{first[1]}.weight", 0, h)]
        for kind in ("weight", "bias") if model.biases else ("weight",):
            names = [f"{theirs}self_attn.{name}_proj.{kind}" for name in "qkv"]
            table[f"{ours}self_attention.linear_qkv.{kind}"] = _queries_keys_values(model, names)
        for name in "qk" if model.qk_norm else "":
            whole = model.query_size if name == "q" else model.key_size
            size = whole if model.qk_norm == "whole" else model.head_size
            table[f"{ours}self_attention.{name}_layernorm.weight"] = [Rows(f"{theirs}self_attn.{name}_norm.weight", 0, size)]
        table[f"{ours}self_attention.linear_proj.weight"] = [Rows(f"{theirs}self_attn.o_proj.weight", 0, h)]
        table[f"{ours}{second[0]}.weight"] = [Rows(f"{theirs}{second[1]}.weight", 0, h)]
        table[f"{ours}mlp.linear_fc1.weight"] = [Rows(f"{theirs}mlp.{name}_proj.weight", 0, f) for name in ("gate", "up")]
        table[f"{ours}mlp.linear_fc2.weight"] = [Rows(f"{theirs}mlp.down_proj.weight", 0, h)]
    table["decoder.final_layernorm.weight"] = [Rows("model.norm.weight", 0, h)]
    if not model.tied_embeddings:
        table[OUTPUT] = [Rows("lm_head.weight", 0, words)]
    return table


def bert_table(model: Model, words: int, positions: int) -> Table:
    """The table of MegatronBertForMaskedLM.

    Args:
        positions: rows of the matrix of learned positions.
    """
    h, f = model.hidden_size, model.ffn_hidden_size
    table: dict[str, list[Rows]] = {
        EMBEDDING: [Rows("bert.embeddings.word_embeddings.weight", 0, words)],
        POSITIONS: [Rows("bert.embeddings.position_embeddings.weight", 0, positions)],
    }
    for layer in range(model.num_layers):
        ours, theirs = f"decoder.layers.{layer}.", f"bert.encoder.layer.{layer}."
        for kind in ("weight", "bias"):
            names = [f"{theirs}attention.self.{name}.{kind}" for name in ("query", "key", "value")]
            table[f"{ours}input_layernorm.{kind}"] = [Rows(f"{theirs}attention.ln.{kind}", 0, h)]
            table[f"{ours}self_attention.linear_qkv.{kind}"] = _queries_keys_values(model, names)
            table[f"{ours}self_attention.linear_proj.{kind}"] = [Rows(f"{theirs}attention.output.dense.{kind}", 0, h)]
            table[f"{ours}pre_mlp_layernorm.{kind}"] = [Rows(f"{theirs}ln.{kind}", 0, h)]
            table[f"{ours}mlp.linear_fc1.{kind}"] = [Rows(f"{theirs}intermediate.dense.{kind}", 0, f)]
            table[f"{ours}mlp.linear_fc2.{kind}"] = [Rows(f"{theirs}output.dense.{kind}", 0, h)]
    for kind in ("weight", "bias"):
        table[f"decoder.final_layernorm.{kind}"] = [Rows(f"bert.encoder.ln.{kind}", 0, h)]
        table[f"head.dense.{kind}"] = [Rows(f"cls.predictions.transform.dense.{kind}", 0, h)]
        table[f"head.norm.{kind}"] = [Rows(f"cls.predictions.transform.LayerNorm.{kind}", 0, h)]
    table[OUTPUT_BIAS] = [Rows("cls.predictions.bias", 0, words)]
    return table


def _queries_keys_values(model: Model, names: Sequence[str]) -> list[Rows]:
    """Group by group: the queries of its heads, its key, its value."""
    d, share = model.head_size, model.num_attention_heads // model.groups
    queries, keys, values = names
    return [
        rows
        for group in range(model.groups)
        for rows in (Rows(queries, group * share * d, share * d), Rows(keys, group * d, d), Rows(values, group * d, d))
    ]


def sizes(table: Table) -> dict[str, int]:
    """Return how many rows each of their tensors has by the table."""
    found: dict[str, int] = {}
    for rows in table.values():
        for part in rows:
            found[part.tensor] = max(found.get(part.tensor, 0), part.first + part.count)
    return found


def columns(name: str, model: Model) -> int | None:
    """Return the columns of one of our parameters; None of a vector."""
    if name.endswith(("bias", "layernorm.weight", "head.norm.weight")):
        return None
    if name.endswith("linear_proj.weight"):
        return model.query_size
    return model.ffn_hidden_size if name.endswith("linear_fc2.weight") else model.hidden_size


def taken_apart(rows: Sequence[Rows], whole: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield their tensors from one of our parameters, in the order of their first rows in it.

    Args:
        whole: the parameter, [rows, ...].
    """
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    begin = 0
    for part in rows:
        parts.setdefault(part.tensor, []).append((part.first, whole[begin : begin + part.count]))
        begin += part.count
    for tensor, found in parts.items():
        yield tensor, np.concatenate([numbers for _, numbers in sorted(found, key=lambda pair: pair[0])])
