"""Small folders as Hugging Face's libraries write them: a tokenizer of bytes, and models of several classes."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PIECES = 500
END, BEGIN = "<|endoftext|>", "<|begin|>"
LAYERS, HIDDEN = 8, 32
SHARED = dict(
    vocab_size=PIECES, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
    max_position_embeddings=64, initializer_range=0.1,
)  # fmt: skip
OURS = {
    "model.num_layers": "8", "model.hidden_size": "32", "model.ffn_hidden_size": "48", "model.num_attention_heads": "4",
    "model.vocab_size": str(PIECES), "model.padded_vocab_size": "640", "model.tied_embeddings": "false",
}  # fmt: skip
"""The same in a recipe's words."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
FOLDERS = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**SHARED, num_key_value_heads=2, head_dim=12, rope_theta=5e5),
        {"model.num_query_groups": "2", "model.head_dim": "12", "model.rotary_base": "500000"},
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(**SHARED, num_key_value_heads=2, head_dim=None, sliding_window=None),
        {"model.num_query_groups": "2", "export_as": "MistralForCausalLM"},
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SHARED, num_key_value_heads=2),
        {"model.num_query_groups": "2", "model.biases": "qkv", "export_as": "Qwen2ForCausalLM"},
    ),
    "olmo2": (
        Olmo2ForCausalLM,
        Olmo2Config(**SHARED, num_key_value_heads=2),
        {
            "model.num_query_groups": "2", "model.qk_norm": "whole", "model.norm_placement": "after",
            "model.norm_epsilon": "1e-5",
        },
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHARED, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, rope_scaling=YARN),
        {
            "model.num_query_groups": "2", "model.head_dim": "16", "model.qk_norm": "true", "model.tied_embeddings": "true",
            "model.rope_scaling": "{type: yarn, factor: 4.0, original_length: 16}",
        },
    ),
}  # fmt: skip
"""A class, a config, and the settings of a recipe that says the same."""
BERT = MegatronBertConfig(**SHARED, type_vocab_size=2, layer_norm_eps=1e-6)


def make_tokenizer(folder: Path, texts: list[str], pieces: int = PIECES, begin: bool = False) -> None:
    """Write a tokenizer of bytes, as Llama 3's and Qwen's.

    Args:
        begin: whether a text begins with a piece of its own, as Llama 3's do.
    """
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    special = [END, *([BEGIN] if begin else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=pieces - len(special), initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    assert library.get_vocab_size() == pieces
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "model_max_length": 64}
    if begin:
        config["bos_token"] = BEGIN
        ends = [(BEGIN, library.token_to_id(BEGIN))]
        library.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B:1", special_tokens=ends)
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, of which none are 0 or 1 by rule."""
    torch.manual_seed(1)
    model = MegatronBertForMaskedLM(BERT) if kind == "bert" else FOLDERS[kind][0](FOLDERS[kind][1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def settings(kind: str, home: Path) -> dict[str, str]:
    """Settings of the test recipe for a folder: its shape, its tokenizer, and token files that were made with it."""
    data = {"data.tokenizer": f"{home}/{kind}", "data.train": f"{home}/train", "data.valid": f"{home}/valid"}
    return {**OURS, **FOLDERS[kind][2], **data, "data.objective": "causal", "init_from": f"{home}/{kind}"}
