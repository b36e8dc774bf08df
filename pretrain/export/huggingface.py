"""RUN -> a folder with weights, config, tokenizer and model card."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pretrain.checkpoint.find import newest_of, require_whole, run_of
from pretrain.checkpoint.reader import Reader
from pretrain.data.loader import tokenizer_of
from pretrain.errors import UserError
from pretrain.export.card import model_card
from pretrain.export.tokenizer import COPIED, special_pieces, write_tokenizer
from pretrain.hugging_face.architectures import BERT, Architecture, architecture_of
from pretrain.hugging_face.tensors import taken_apart
from pretrain.progress import bar

WRITTEN = re.compile(
    "|".join(map(re.escape, ("config.json", "README.md", "tokenizer.json", "tokenizer.model", *COPIED)))
    + r"|model.*\.safetensors(\.index\.json)?"
)
"""Names of what an export writes."""
SHARD_BYTES = 5 * 10**9
"""Most bytes of one file of weights, as Hugging Face's libraries write them."""


def export(path: Path, to: Path, dtype: torch.dtype = torch.float32, force: bool = False, wanted: str | None = None) -> Path:
    """Write the newest good checkpoint of a run, or the one that `path` is; returns the checkpoint's folder.

    The folder appears whole or not at all.

    Args:
        force: replace an earlier export.
        wanted: a class of transformers, where several compute the same; the recipe's `export_as` if None.

    Raises:
        UserError: no good checkpoint, `to` exists, or transformers has no class for the model.
    """
    _require_room(to, force)
    folder, manifest = newest_of(path)
    run = run_of(folder, manifest)
    require_whole(run, folder, manifest)
    tokenizer, is_bert = tokenizer_of(run), run.recipe.data.made_as.export_as == BERT
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(f"{tokenizer.directory}: not the tokenizer by which {folder} was trained; restore it")
    ends = {name: piece for name, piece in special_pieces(is_bert).items() if name in ("pad_token", "eos_token")}
    special: dict[str, int | None] = {f"{name}_id": tokenizer.id(piece) for name, piece in ends.items()}
    special["bos_token_id"] = next(iter(tokenizer.begin), None)
    architecture = architecture_of(run.recipe, special, wanted or run.recipe.export_as)
    to.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
    try:
        _write_config(architecture, work, dtype)
        write_tokenizer(tokenizer, work, run.recipe.data.sequence_length, is_bert)
        with Reader(folder, manifest) as reader:
            _write_weights(_weights(architecture, reader), work, dtype)
        (work / "README.md").write_text(model_card(run, manifest, path, architecture.name))
        os.chmod(work, 0o755)
        if force and to.is_dir():
            former = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
            os.replace(to, former)
            try:
                os.replace(work, to)
            except OSError:
                os.replace(former, to)  # nothing is lost
                raise
            shutil.rmtree(former, ignore_errors=True)
        else:
            os.replace(work, to)
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"{folder}: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _require_room(to: Path, force: bool) -> None:
    """
    Raises:
        UserError: there is something at `to` that must not be replaced, or it cannot be a folder.
    """
    if any(parent.exists() and not parent.is_dir() for parent in to.absolute().parents):
        raise UserError(f"--to {to}: lies below a file; choose another folder")
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise UserError(f"--to {to}: is no folder; remove it or choose another")
    if not to.is_dir() or not any(to.iterdir()):
        return
    if any(not WRITTEN.fullmatch(path.name) for path in to.iterdir()):
        raise UserError(f"--to {to}: holds other files than an export's; choose another folder")
    if not force:
        raise UserError(f"--to {to}: exists; remove it, choose another folder, or replace it with --force")


def _write_config(architecture: Architecture, folder: Path, dtype: torch.dtype) -> None:
    config = {**architecture.config, "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _weights(architecture: Architecture, reader: Reader) -> Iterator[tuple[str, np.ndarray]]:
    with bar("writing weights", len(architecture.table), "tensors") as shown:
        for name, rows in architecture.table.items():
            yield from taken_apart(rows, reader.whole(name))
            shown.add()
    for name, shape in architecture.zeros.items():
        yield name, np.zeros(shape, dtype=np.float32)


def _write_weights(weights: Iterator[tuple[str, np.ndarray]], folder: Path, dtype: torch.dtype) -> None:
    """One file, or several with an index, so that no more than one of them is in memory at a time."""
    places: dict[str, int] = {}
    files, total = 0, 0
    for shard in _shards(weights, dtype):
        save_file(shard, folder / f"part-{files}", metadata={"format": "pt"})
        os.chmod(folder / f"part-{files}", 0o644)  # the library lets only the owner read it
        places |= dict.fromkeys(shard, files)
        total += sum(weight.nbytes for weight in shard.values())
        files += 1
    names = ["model.safetensors"] if files == 1 else [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)]
    for index, name in enumerate(names):
        os.replace(folder / f"part-{index}", folder / name)
    if files > 1:
        listed = {"metadata": {"total_size": total}, "weight_map": {name: names[place] for name, place in places.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed, indent=2) + "\n")


def _shards(weights: Iterator[tuple[str, np.ndarray]], dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for name, numbers in weights:
        weight = torch.from_numpy(np.ascontiguousarray(numbers)).to(dtype)
        if shard and sum(other.nbytes for other in shard.values()) + weight.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = weight
    yield shard
