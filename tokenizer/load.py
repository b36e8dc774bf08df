"""A tokenizer from its folder, whoever made it."""

import json
from pathlib import Path

from pretrain.errors import UserError, reason
from tokenizer.hugging_face import HuggingFacePieces, is_hugging_face
from tokenizer.pieces import Tokenizer
from tokenizer.sentence_pieces import KEYS, MANIFEST, SentencePieces


def load_tokenizer(directory: Path, vocab_size: int | None = None) -> Tokenizer:
    """Open the folder that `python -m tokenizer train` wrote, or one of Hugging Face's with a tokenizer.json.

    Args:
        vocab_size: pieces that the recipe counts; decides whether those that Hugging Face's lacks are added behind its own.

    Raises:
        UserError: the folder or a part of it is missing, or not as its maker left it.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if is_hugging_face(manifest):
            return HuggingFacePieces.open(directory, vocab_size)
        if not isinstance(manifest, dict) or not KEYS <= manifest.keys():
            raise ValueError(f"{MANIFEST} is not a tokenizer's")
        return SentencePieces.open(directory, manifest)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{directory}: no tokenizer here ({reason(error)}); make one with python -m tokenizer train --input GLOB "
            f"--vocab-size N --out {directory}, or give a folder of Hugging Face's with a {MANIFEST}"
        ) from None
