"""Text to tokens: sentencepiece models with UL2's reserved pieces, and Megatron-Core token files."""

from tokenizer.pieces import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
