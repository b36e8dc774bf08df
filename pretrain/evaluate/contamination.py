"""Which documents of a task the training text may hold: stretches of 13 words of a question with its answer that stand in it, as
GPT-3's authors looked for them (arXiv 2005.14165, appendix C)."""

import hashlib
import multiprocessing
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from pretrain.data.identity import checksum
from pretrain.data.installed_docs import cache_directory
from pretrain.data.tokens import TokenStream
from pretrain.files import write_whole
from tokenizer.load import load_tokenizer
from tokenizer.pieces import Tokenizer

WORDS = 13
APART = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Characters of scripts without spaces (Thai, Lao, Burmese, Khmer, Japanese, Chinese): a word each."""
WORD = re.compile(rf"[{APART}]|[^\W{APART}]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: powers of it weigh the words of a stretch, modulo 2**64."""
TOKENS = 2**21
"""Training tokens that a process looks through at a time."""
AT_A_TIME = 8
"""Such parts that each process looks through before anybody is told."""


def shingles(text: str) -> np.ndarray:
    """Return a number for each stretch of 13 words, whatever their case and punctuation, [stretches] uint64; none of a shorter
    text."""
    return _stretches(np.array([_word(word) for word in WORD.findall(text.lower())], np.uint64))


def _word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _stretches(words: np.ndarray) -> np.ndarray:
    count = len(words) - WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    found = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(WORDS):
            found = found * FACTOR + words[place : place + count]
    return found


@dataclass(frozen=True)
class Job:
    """Documents of a token file that stand side by side."""

    data: Path
    dtype: str
    begin: int
    """First token."""
    ends: tuple[int, ...]
    """Where each document ends."""


def seen_in(stream: TokenStream, wanted: np.ndarray, tokenizer: Tokenizer, workers: int | None = None) -> Iterator[np.ndarray]:
    """Yield those of the wanted stretches that a token file holds, a part of the file at a time. What was found is kept for the
    next time.

    Args:
        wanted: [stretches] uint64, of `shingles`, sorted and without duplicates.
        workers: processes; as many as there are cores if None.
    """
    name = hashlib.sha256(
        f"{checksum(stream.prefix)} {len(stream)} {tokenizer.sha256} {WORDS} {WORD.pattern}".encode() + wanted.tobytes()
    ).hexdigest()
    kept = cache_directory() / "contamination" / f"{name}.u64"
    if kept.exists():
        yield np.frombuffer(kept.read_bytes(), np.uint64)
        return
    count = workers or len(os.sched_getaffinity(0))
    look, jobs = partial(_seen, wanted=wanted, tokenizer=tokenizer.directory), _jobs(stream)
    found = [np.empty(0, np.uint64)]
    # Not forked: the process that asks may have threads of torch's and of groups of ranks.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) if count > 1 else nullcontext() as pool:
        while some := list(islice(jobs, AT_A_TIME * count)):
            found += map(look, some) if pool is None else pool.map(look, some)
            yield found[-1]
    together = np.unique(np.concatenate(found))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, together.tobytes())
    yield together


def _jobs(stream: TokenStream) -> Iterator[Job]:
    data, dtype = stream.prefix.with_name(stream.prefix.name + ".bin"), stream.tokens.dtype.str
    begin, last, ends = 0, 0, list[int]()
    for document in range(len(stream.ends)):
        last = int(stream.ends[document])
        ends.append(last)
        if last - begin >= TOKENS:
            yield Job(data, dtype, begin, tuple(ends))
            begin, ends = last, []
    if ends:
        yield Job(data, dtype, begin, tuple(ends))


def _seen(job: Job, wanted: np.ndarray, tokenizer: Path) -> np.ndarray:
    opened, known, found = load_tokenizer(tokenizer), dict[str, int](), [np.empty(0, np.uint64)]
    tokens = np.memmap(job.data, np.dtype(job.dtype), mode="r")
    for begin, end in zip((job.begin, *job.ends), job.ends):
        text = opened.text(tokens[begin:end].tolist()).lower()
        numbers = []
        for word in WORD.findall(text):
            if word not in known:
                known[word] = _word(word)
            numbers.append(known[word])
        stretches = _stretches(np.array(numbers, np.uint64))
        places = np.searchsorted(wanted, stretches)
        places[places == len(wanted)] = 0
        if len(wanted):
            found.append(np.unique(stretches[wanted[places] == stretches]))
    return np.unique(np.concatenate(found))


@dataclass(frozen=True)
class Overlap:
    """Which documents were seen, by their numbers."""

    seen: frozenset[int]
    unknown: frozenset[int]
    """Those of fewer than 13 words, of which nothing can be said."""


class Search:
    """Looks documents of several tasks up in all training text, in one pass."""

    def __init__(
        self,
        texts: Mapping[str, Mapping[int, str]],
        streams: Sequence[TokenStream],
        tokenizer: Tokenizer,
        workers: int | None = None,
    ) -> None:
        """
        Args:
            texts: of each document, by its number, by task.
            workers: processes; as many as there are cores if None.
        """
        self._own = {task: {number: shingles(text) for number, text in each.items()} for task, each in texts.items()}
        stretches = [each for documents in self._own.values() for each in documents.values()]
        wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *stretches]))
        self._parts = (part for stream in streams for part in seen_in(stream, wanted, tokenizer, workers))
        self._seen = np.empty(0, np.uint64)

    @property
    def tasks(self) -> list[str]:
        return list(self._own)

    def go_on(self) -> bool:
        """Look through some more of the text; returns False once there is none."""
        part = next(self._parts, None)
        if part is not None:
            self._seen = np.union1d(self._seen, part)
        return part is not None

    def found(self, task: str) -> Overlap:
        """Return what came of a task, once all text has been looked through."""
        own = self._own[task]
        return Overlap(
            frozenset(number for number, stretches in own.items() if np.isin(stretches, self._seen).any()),
            frozenset(number for number, stretches in own.items() if not len(stretches)),
        )
