"""What must be the same for two runs to be compared, and what must differ only as the study says."""

from pathlib import Path
from typing import Any

from pretrain.config.run import Run
from pretrain.data.identity import TOKENIZER, checksum
from pretrain.data.loader import sources_of, tokenizer_of

FILES = ("train", "valid")
PLACES = {"recipe.data.tokenizer", "recipe.data.train", "recipe.data.valid", "recipe.data.sources"}
"""Settings that name files, which may be anywhere; `data_of` says what is in them."""


def settings_of(run: Run) -> dict[str, Any]:
    """Everything that decides the losses of a run but the data's content, as dotted keys."""
    sources = {f"data.{source.name}.weight": source.weight for source in run.recipe.data.all_sources}
    return {**{key: value for key, value in run.identity().items() if key not in PLACES}, **sources}


def data_of(run: Run) -> dict[str, str]:
    """Checksums of the tokenizer and of every token file of a run.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    found = {TOKENIZER: tokenizer_of(run).sha256}
    for source in sources_of(run):
        for part in FILES:
            if (prefix := getattr(source, part)) is not None:
                found[f"{source.name}.{part}"] = checksum(Path(prefix))
    return found
