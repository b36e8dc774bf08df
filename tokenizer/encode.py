"""Documents to Megatron-Core token files: PREFIX.bin, PREFIX.idx, and PREFIX.json, which names the tokenizer."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from pretrain.errors import UserError
from tokenizer.pieces import Tokenizer
from tokenizer.text import documents, find_inputs

DOCUMENTS_AT_A_TIME = 1024


def encode(pattern: str, tokenizer: Tokenizer, prefix: Path) -> dict:
    """Encode all documents of a glob, one sequence a document, in order; returns the manifest.

    The three files get their names only when they are complete, the index last: a reader never sees a part.

    Raises:
        UserError: no input, or a line that is not a document.
    """
    files = find_inputs(pattern)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    parts = {end: prefix.with_name(f".{prefix.name}.{os.getpid()}{end}") for end in (".bin", ".json", ".idx")}
    tokens = count = 0
    try:
        builder = IndexedDatasetBuilder(str(parts[".bin"]), dtype=np.uint16 if tokenizer.vocab_size < 2**16 else np.int32)
        texts = documents(files)
        while batch := list(islice(texts, DOCUMENTS_AT_A_TIME)):
            for ids in tokenizer.processor.encode(batch):
                builder.add_document(np.array(ids), [len(ids)])
                tokens += len(ids)
            count += len(batch)
        if tokens == 0:
            raise UserError(f"--input {pattern}: holds no text")
        builder.finalize(str(parts[".idx"]))
        manifest = {
            "documents": count,
            "tokens": tokens,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
        }
        parts[".json"].write_text(json.dumps(manifest, indent=2) + "\n")
        for end, part in parts.items():
            os.replace(part, prefix.with_name(prefix.name + end))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return manifest
