"""Text to tokens: sentencepiece models with UL2's reserved pieces, and Megatron-Core token files."""

from tokenizer.load import load_tokenizer
from tokenizer.pieces import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
