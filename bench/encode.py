"""Does encoding cost more than sentencepiece itself?

    python -m bench.encode --input GLOB --tokenizer DIR [--ranks 1 2 4] [--out DIR]

The same command encodes the same text alone and under MPI, and bare sentencepiece encodes it from memory in between. Compared are bytes a
second of CPU time: a busy core's throughput, whatever else the machine does. Digests of the token files must be equal, and the peak
memory of a process should not depend on the size of the input.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import psutil

from bench.path_speed import HOME, cpu_name
from tokenizer.pieces import load_tokenizer
from tokenizer.text import documents, find_inputs

BAR = 0.9
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--input", required=True)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args = parser.parse_args()
    texts = list(documents(find_inputs(args.input)))
    size = sum(len(text.encode()) for text in texts)
    lines = ["# Encoding", "", f"- date: {date.today().isoformat()}", f"- cpu: {cpu_name()}", f"- text: {size / 1e6:.0f} MB in {len(texts):,} documents", ""]
    lines += ["| | MB a second of CPU time | over bare | wall clock, s | largest process, MiB | sha256 of .bin |", "|---|---|---|---|---|---|"]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in args.ranks:
            bare = bare_rate(texts, size, args.tokenizer)
            prefix = Path(folder) / f"of{ranks}"
            took, wall, memory = measure(args.input, args.tokenizer, prefix, ranks)
            digest = hashlib.sha256(prefix.with_name(prefix.name + ".bin").read_bytes()).hexdigest()
            results[ranks] = {"rate": size / took, "bare": bare, "wall": wall, "memory_mib": memory, "sha256": digest}
            row = f"| {ranks} rank{'s' * (ranks > 1)} | {size / took / 1e6:.2f} | {size / took / bare:.3f} | {wall:.0f} | {memory:.0f} | {digest[:12]} |"
            print(row, flush=True)
            lines.append(row)
    assert len({result["sha256"] for result in results.values()}) == 1, "the token files differ"
    met = "met" if min(result["rate"] / result["bare"] for result in results.values()) >= BAR else "NOT MET"
    lines += ["", f"Bar: {BAR} of bare sentencepiece: {met}. Its documents lie in memory; all CPU time is counted, reading, launcher and start included.", ""]
    args.out.mkdir(parents=True, exist_ok=True)
    name = "encode_cpu_" + "_".join(sorted({"".join(file.suffixes).strip(".").replace(".", "_") for file in find_inputs(args.input)}))
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / f"{name}.md").write_text("\n".join(lines))


def bare_rate(texts: list[str], size: int, tokenizer: Path) -> float:
    """Bytes a second of CPU time of sentencepiece alone, on one thread."""
    processor = load_tokenizer(tokenizer).processor
    started = time.process_time()
    for first in range(0, len(texts), BATCH):
        processor.encode(texts[first : first + BATCH], num_threads=1)
    return size / (time.process_time() - started)


def measure(pattern: str, tokenizer: Path, prefix: Path, ranks: int) -> tuple[float, float, float]:
    """CPU seconds of all processes, wall clock, and the largest process's memory in MiB."""
    command = [sys.executable, "-m", "tokenizer", "encode", "--input", pattern, "--tokenizer", str(tokenizer), "--out", str(prefix)]
    if ranks > 1:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command]
    before, started, largest = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        largest = max(largest, *(memory_of(each) for each in (process, *process.children(recursive=True))))
        time.sleep(0.1)
    assert process.returncode == 0, "encode failed"
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, wall, largest / 2**20


def memory_of(process: psutil.Process) -> int:
    """Bytes in use now; getrusage would also count what a child shared with this process before it became another program."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


if __name__ == "__main__":
    main()
