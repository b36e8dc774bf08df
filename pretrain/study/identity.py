"""What must be the same for two runs to be compared, and what must differ only as the study says."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from pretrain.config.run import Run
from pretrain.data.loader import sources_of, tokenizer_of
from pretrain.errors import UserError

FILES = ("train", "valid")
PLACES = {"recipe.data.tokenizer", "recipe.data.train", "recipe.data.valid", "recipe.data.sources"}
"""Settings that name files, which may be anywhere; `data_of` says what is in them."""
BLOCK, BLOCKS = 2**16, 64
"""Bytes of a block, and how many of a large token file are read."""


def settings_of(run: Run) -> dict[str, Any]:
    """Everything that decides the losses of a run but the data's content, as dotted keys."""
    sources = {f"data.{source.name}.weight": source.weight for source in run.recipe.data.all_sources}
    return {**{key: value for key, value in run.identity().items() if key not in PLACES}, **sources}


def data_of(run: Run) -> dict[str, str]:
    """Checksums of the tokenizer and of every token file of a run.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    found = {"tokenizer": tokenizer_of(run).sha256}
    for source in sources_of(run):
        for part in FILES:
            if (prefix := getattr(source, part)) is not None:
                found[f"{source.name}.{part}"] = checksum(Path(prefix))
    return found


def checksum(prefix: Path) -> str:
    """Return a checksum of PREFIX.idx, which has the length of every document, and of blocks spread evenly over PREFIX.bin:
    terabytes take no time. Raises UserError."""
    index, data = (prefix.with_name(prefix.name + end) for end in (".idx", ".bin"))
    try:
        return _checksum(index, data, index.stat().st_mtime_ns, data.stat().st_mtime_ns, data.stat().st_size)
    except OSError as error:
        raise UserError(
            f"{error.filename or prefix}: cannot be read: {error.strerror}; token files are made by python -m tokenizer encode"
        ) from None


@cache
def _checksum(index: Path, data: Path, index_changed: int, data_changed: int, size: int) -> str:
    digest = hashlib.sha256(index.read_bytes())
    with data.open("rb") as file:
        for block in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    digest.update(str(size).encode())
    return digest.hexdigest()
