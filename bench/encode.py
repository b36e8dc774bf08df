"""Does encoding cost more than sentencepiece itself?

    python -m bench.encode --input FILE --tokenizer DIR [--ranks 1 2 4] [--rounds 3] [--out DIR]

The same command encodes the same .jsonl file (also .gz, .xz) alone and under MPI. Before each of these bare sentencepiece encodes
its text from memory, into lists as `encode` does by itself and into arrays as it does when asked, and a plain loop reads the file
and encodes it into lists; on as many cores at once, since a core is slower while the others are busy. Compared are bytes a second
of CPU time: a busy core's throughput, whatever else the machine does. Neither side's start counts: bare sentencepiece's clock
runs from the first text on, and of ours is taken off what the same command costs for the first document alone. Digests of the
token files must be equal, and the peak memory of a process should not depend on the size of the input: it is compared with that
of 10 MB of the text, its longest document among them.
"""

import argparse
import gzip
import itertools
import json
import lzma
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, cast

import psutil

from bench.path_speed import HOME
from pretrain.files import sha256
from pretrain.versions import device_name
from tokenizer.load import load_tokenizer
from tokenizer.sentence_pieces import SentencePieces

BAR, MEMORY_BAR = 0.9, 1.1
SMALL = 10_000_000
BATCH = 256
OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input", required=True, type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args = parser.parse_args()
    texts = list(read(args.input))
    size = sum(len(text.encode()) for text in texts)
    lines = ["# Encoding", "", f"- date: {date.today().isoformat()}", f"- cpu: {device_name('cpu')}"]
    lines += [f"- text: {size / 1e6:.0f} MB in {len(texts):,} documents of a {''.join(args.input.suffixes)} file", ""]
    lines += [
        "| ranks | MB a second of CPU time | over bare | over bare into arrays | over a plain loop | start, CPU s | wall clock, s"
        " | largest process, MiB |"
    ]
    lines += ["|---" * 8 + "|"]
    results, digests = {}, set()
    with tempfile.TemporaryDirectory() as folder:
        first = write(Path(folder) / f"first{''.join(args.input.suffixes)}", texts[:1])
        for ranks in args.ranks:
            cores, rounds = min(ranks, len(os.sched_getaffinity(0))), []
            for number in range(args.rounds):
                bare, plain = (seconds(source, args.tokenizer, cores) for source in (lambda: texts, lambda: read(args.input)))
                arrays = seconds(lambda: texts, args.tokenizer, cores, return_type="numpy")
                prefix = Path(folder) / f"{ranks}-{number}"
                start, _, _ = measure(first, args.tokenizer, prefix.with_name(f"first-{prefix.name}"), ranks)
                took, wall, memory = measure(args.input, args.tokenizer, prefix, ranks)
                took -= start
                rounds.append((size / took / 1e6, bare / took, arrays / took, plain / took, start, wall, memory))
                digests.add(sha256(prefix.with_name(prefix.name + ".bin")))
            results[ranks] = dict(
                zip(
                    ("rate", "over_bare", "over_arrays", "over_plain", "start", "wall", "memory_mib"),
                    map(statistics.median, zip(*rounds)),
                )
            )
            row = (
                "| {} | {rate:.2f} | {over_bare:.3f} | {over_arrays:.3f} | {over_plain:.3f} | {start:.2f} | {wall:.0f} |"
                " {memory_mib:.0f} |".format(ranks, **results[ranks])
            )
            print(row, flush=True)
            lines.append(row)
        small = write(Path(folder) / f"small{''.join(args.input.suffixes)}", some_of(texts))
        _, _, memory = measure(small, args.tokenizer, Path(folder) / "small", args.ranks[0])
    assert len(digests) == 1, "the token files differ"
    growth = results[args.ranks[0]]["memory_mib"] / memory
    least = min(result["over_bare"] for result in results.values())
    lines += ["", f"Medians of {args.rounds} rounds. sha256 of .bin in all of them: {digests.pop()[:16]}."]
    lines += [
        f"Least over bare: {least:.3f}; bar {BAR}: {'met' if least >= BAR else 'NOT MET'}. All CPU time but the start is counted:"
        " reading, launcher, waiting."
    ]
    lines += [
        (
            f"Memory over that for {SMALL / 1e6:.0f} MB: {growth:.3f}; bar {MEMORY_BAR}:"
            f" {'met' if growth <= MEMORY_BAR else 'NOT MET'}."
        ),
        "",
    ]
    print("\n".join(lines[-4:]))
    args.out.mkdir(parents=True, exist_ok=True)
    name = "encode_cpu" + "".join(args.input.suffixes).replace(".", "_")
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / f"{name}.md").write_text("\n".join(lines))


def opened(file: Path, mode: str) -> IO[str]:
    return cast(IO[str], OPEN.get(file.suffix, open)(file, mode, encoding="utf-8"))


def read(file: Path) -> Iterator[str]:
    """Texts, as anyone would read them."""
    with opened(file, "rt") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def write(file: Path, texts: Iterable[str]) -> Path:
    """The file, with these documents."""
    with opened(file, "wt") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return file


def seconds(texts: Callable[[], Iterable[str]], tokenizer: Path, cores: int, **how: Any) -> float:
    """CPU time of sentencepiece alone: the mean of processes that each encode the text on a thread, at once."""

    def encode(pipe: Connection) -> None:
        opened = load_tokenizer(tokenizer)
        assert isinstance(opened, SentencePieces)
        processor = opened.processor
        started, source = time.process_time(), iter(texts())
        while batch := list(itertools.islice(source, BATCH)):
            processor.encode(batch, num_threads=1, **how)
        pipe.send(time.process_time() - started)

    forked, (mine, theirs) = multiprocessing.get_context("fork"), multiprocessing.Pipe()
    processes = [forked.Process(target=encode, args=(theirs,)) for _ in range(cores)]
    for process in processes:
        process.start()
    took = [mine.recv() for _ in processes]
    for process in processes:
        process.join()
    return sum(took) / cores


def some_of(texts: list[str]) -> list[str]:
    """The first of the texts, and behind them the longest."""
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    return [*itertools.takewhile(lambda _: next(sizes) < SMALL, texts), max(texts, key=len)]


def measure(file: Path, tokenizer: Path, prefix: Path, ranks: int) -> tuple[float, float, float]:
    """CPU seconds of all processes, wall clock, and the largest process's memory in MiB."""
    command = [
        sys.executable,
        "-m",
        "tokenizer",
        "encode",
        "--input",
        str(file),
        "--tokenizer",
        str(tokenizer),
        "--out",
        str(prefix),
    ]
    if ranks > 1:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command]
    before, started, peaks = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), dict[int, int]()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peaks |= {each.pid: peak_of(each.pid) or peaks.get(each.pid, 0) for each in (process, *process.children(recursive=True))}
        time.sleep(0.02)
    assert process.returncode == 0, "encode failed"
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, wall, max(peaks.values()) / 1024


def peak_of(pid: int) -> int:
    """KiB at most so far, 0 for a process that has ended; getrusage would also count what it shared with this one at its
    start."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()
