"""Documents to Megatron-Core token files: PREFIX.bin, PREFIX.idx, and PREFIX.json, which names the tokenizer.

The unit of work is a block of documents. Rank 0 hands blocks to whoever is free: of a plain file it says where they are,
others it reads as a stream; finished blocks are in PREFIX.parts/ under their numbers, from which the token files are put together
in the order of the input. So they are the same for any number of processes, and a run that was killed resumes from what is
finished.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from pretrain.errors import UserError, reason
from tokenizer.files import BadDocument, find_inputs
from tokenizer.parts import Parts, Tally
from tokenizer.pieces import Tokenizer
from tokenizer.progress import Progress
from tokenizer.sentence_pieces import PART_CHARACTERS
from tokenizer.team import ALONE, Team
from tokenizer.text import BLOCK_BYTES, Block, OnError, Stretch, pieces, text_of

BATCH_CHARACTERS = 200_000
"""Characters of the documents that sentencepiece gets at a time."""
BLOCKS, MOST_BLOCK_BYTES = 20_000, 2**25
"""Blocks of a large input are larger, since three files a block are a load for a shared file system."""
CUT = 3
"""Number of the rule by which files are cut into blocks; changes with the rule, so that blocks of two rules are never put
together."""


def encode(
    inputs: str | Sequence[str],
    tokenizer: Tokenizer,
    prefix: Path,
    on_error: OnError = "stop",
    team: Team = ALONE,
    quiet: bool = True,
) -> dict:
    """Encode all documents of a glob, or of several, one sequence a document, in order; returns the manifest, on every rank.

    The three files get their names only when they are complete, the index last: a reader never sees a part.

    Args:
        on_error: whether a document that cannot be read ends the run or is counted, listed in the manifest and left out.
        quiet: without progress and summary.

    Raises:
        UserError: no input, token files that exist, a document that cannot be read, another process at work on the same files,
            or no text at all.
    """
    parts = Parts.of(prefix, tokenizer.vocab_size)

    def begin() -> tuple[list[Path], int, set[str]]:
        if prefix.name in ("", ".."):
            raise UserError(f"--out {prefix}: give a folder and the beginning of a name, as data/train")
        files = find_inputs(inputs)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(prefix.with_name(f".{prefix.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"--out {prefix}: another process is writing it") from None
        held.append(lock)
        parts.forget()
        if prefix.with_name(prefix.name + ".idx").exists():
            if parts.folder.exists():
                parts.remove()  # an earlier run was killed between its last two acts
            raise UserError(f"--out {prefix}: {prefix}.idx exists; remove it or choose another name")
        others = [file for end in (".bin", ".json") if (file := prefix.with_name(prefix.name + end)).exists()]
        if others and not parts.folder.exists():
            raise UserError(
                f"--out {prefix}: {others[0]} exists, and was not left by a run that was killed; remove it or choose another name"
            )
        block_bytes = parts.claim(_plan(files, tokenizer))["block_bytes"]
        return files, block_bytes, parts.finished(without_bad=on_error == "stop")

    held: list[FileLock] = []
    try:
        files, block_bytes, finished = team.on_main(begin)
        progress = Progress(files, quiet or not team.is_main)
        damaged: list[tuple[str, int, str]] = []
        names: list[str] = []
        jobs = _jobs(files, block_bytes, finished, names, damaged, on_error, progress)
        team.share(
            jobs,
            lambda block: _encode(block, files, tokenizer, parts, on_error),
            progress.add,
            lambda block: isinstance(block, Stretch),
        )
        progress.finish()
        names = team.on_main(lambda: names)
        try:
            return _put_together(inputs, prefix, parts, names, damaged, tokenizer, team, progress)
        except OSError as error:
            raise OSError(
                error.errno, f"{reason(error)}; finished blocks stay, and the same command resumes", str(prefix)
            ) from None
    finally:
        for lock in held:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _plan(files: Sequence[Path], tokenizer: Tokenizer) -> dict:
    """What finished blocks depend on."""
    facts = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    block_bytes = min(max(BLOCK_BYTES, sum(file.stat().st_size for file in files) // BLOCKS), MOST_BLOCK_BYTES)
    return {
        "tokenizer_sha256": tokenizer.sha256,
        "part_characters": PART_CHARACTERS,
        "cut": CUT,
        "block_bytes": block_bytes,
        "files": facts,
    }


def _jobs(
    files: Sequence[Path],
    block_bytes: int,
    finished: set[str],
    names: list[str],
    damaged: list,
    on_error: OnError,
    progress: Progress,
) -> Iterator[Block | Stretch]:
    """Blocks that are not finished; `names` gets those of all, `damaged` the files that could not be read to their end."""
    for index, file in enumerate(files):
        try:
            for block in pieces(index, file, block_bytes):
                names.append(block.name)
                if block.name in finished:
                    progress.skip(block)
                else:
                    yield block
        except BadDocument as error:
            if on_error == "stop":
                raise UserError(f"{file}: {error}; --on-error skip uses what can be read") from None
            damaged.append((str(file), 0, str(error)))


def _encode(block: Block | Stretch, files: Sequence[Path], tokenizer: Tokenizer, parts: Parts, on_error: OnError) -> Tally:
    """Encode a block and write it down."""
    found = block.read(files[block.file])
    tally = Tally(text_bytes=sum(len(document or b"") for document in found), lines=len(found))
    documents: list[np.ndarray] = []
    for texts in _batches(_texts(block, found, files[block.file], on_error, tally)):
        documents += [ids.astype(parts.dtype) for ids in tokenizer.documents(texts)]
    lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
    tally.documents, tally.tokens = len(documents), int(lengths.sum())
    parts.write(block.name, np.concatenate(documents) if documents else np.empty(0, parts.dtype), lengths, tally)
    return tally


def _texts(block: Block | Stretch, found: Sequence[bytes | None], file: Path, on_error: OnError, tally: Tally) -> Iterator[str]:
    """The texts of a block; what is none goes into the tally, by its line within the block."""
    for line, document in enumerate(found, start=1):
        try:
            text = text_of(document, block.is_json)
        except BadDocument as error:
            if on_error == "stop":
                raise UserError(
                    f"{file}: line {block.lines_before(file) + line}: {error}; --on-error skip leaves such documents out"
                ) from None
            tally.bad.append((str(file), line, str(error)))
            continue
        if text.strip():
            yield text
        else:
            tally.empty += 1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The same texts, some at a time."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _put_together(
    inputs: str | Sequence[str],
    prefix: Path,
    parts: Parts,
    names: list[str],
    damaged: list,
    tokenizer: Tokenizer,
    team: Team,
    progress: Progress,
) -> dict:
    """The token files from the blocks; every rank copies some."""
    whole = {end: prefix.with_name(f".{prefix.name}{end}.unfinished") for end in (".bin", ".json", ".idx")}
    started = time.perf_counter()

    def prepare() -> dict:
        total = Tally(bad=list(damaged))
        before: Counter[str] = Counter()  # lines of each file, so far
        for name in names:
            tally, file = parts.tally(name), name.partition("-")[0]
            tally.bad = [(path, before[file] + line, reason) for path, line, reason in tally.bad]
            before[file] += tally.lines
            total.add(tally)
        if total.tokens == 0:
            parts.remove()
            raise UserError(f"--input {inputs if isinstance(inputs, str) else ' '.join(inputs)}: holds no text")
        with whole[".bin"].open("wb") as tokens:
            tokens.truncate(parts.size(names))
        return {
            "documents": total.documents,
            "tokens": total.tokens,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "empty_documents": total.empty,
            "bad_documents": [{"file": file, "line": line, "reason": reason} for file, line, reason in sorted(total.bad)],
        }

    manifest = team.on_main(prepare)
    parts.copy(names, whole[".bin"], team.rank, team.size)
    team.wait()

    def finish() -> None:
        parts.write_index(names, whole[".idx"])
        whole[".json"].write_text(json.dumps(manifest, indent=2) + "\n")
        for end, file in whole.items():
            os.replace(file, prefix.with_name(prefix.name + end))
        parts.remove()

    team.on_main(finish)
    progress.summary(manifest, prefix, time.perf_counter() - started)
    return manifest
