"""Does the GPU path do what is promised, and how fast? One command, one GPU, no network, at most eight minutes.

    python -m bench.gpu [--out DIR] [--parts NAME ...] [--device cuda|cpu]

Each part runs in a process of its own with a time limit (bench/gpu_parts.py has them), and what it found is written as it comes:
DIR/gpu.json, and a page, DIR/gpu.md. `--device cpu` tries the parts on a small model, for their own sake.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from bench.gpu_common import Row
from bench.gpu_parts import PARTS, run_part

HOME = Path(__file__).parent
TOTAL_SECONDS = 480


@dataclass(frozen=True)
class Found:
    """What came of one part."""

    name: str
    rows: list[Row]
    problem: str | None
    """Why there are no rows, or not all."""
    seconds: float


def main() -> int:
    """0 if every part ran and met its bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=HOME / "results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        run_part(args.parts[0], args.device, args.one)
        return 0
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: there is no GPU that this torch can use; --device cpu tries the parts on a small model")
    args.out.mkdir(parents=True, exist_ok=True)
    began, found = time.time(), []
    for name in args.parts:
        left = TOTAL_SECONDS - (time.time() - began) if args.device == "cuda" else 600.0
        found.append(in_own_process(name, args.device, args.out, min(left, PARTS[name].most_seconds)))
        write(found, args.out, args.device)
    print(f"{args.out / 'gpu.md'}")
    return 0 if all(part.problem is None and all(row.good for row in part.rows) for part in found) else 1


def in_own_process(name: str, device: str, out: Path, most_seconds: float) -> Found:
    """Run a part; what it had written when its time was over counts."""
    if most_seconds < 5:
        return Found(name, [], "no time was left", 0.0)
    rows, began, problem = out / f".gpu_{name}.jsonl", time.time(), None
    rows.unlink(missing_ok=True)
    words = [sys.executable, "-m", "bench.gpu", "--parts", name, "--device", device, "--one", str(rows)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=most_seconds)
        if process.returncode != 0:
            problem = (errors.strip().splitlines() or [f"ended with {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        problem = f"not through after {most_seconds:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
        process.communicate()
    lines = rows.read_text().splitlines() if rows.exists() else []
    rows.unlink(missing_ok=True)
    found = Found(name, [Row(**json.loads(line)) for line in lines], problem, round(time.time() - began, 1))
    print("\n".join(table(found)), flush=True)
    return found


def table(part: Found) -> list[str]:
    """A part as a section of the page."""
    lines = [f"## {part.name.replace('_', ' ')} ({part.seconds:.0f} s)", "", PARTS[part.name].words, ""]
    if part.rows:
        lines += ["| what | measured | wanted |", "|---|---|---|"]
        lines += [f"| {row.what} | {row.shown} | {row.wanted}{'' if row.good else ': **not met**'} |" for row in part.rows]
        lines += [""]
    return lines + ([f"**{part.problem}**", ""] if part.problem else [])


def write(found: Sequence[Found], out: Path, device: str) -> None:
    """The page so far, and its numbers."""
    import torch

    from pretrain.versions import commit, device_name

    facts = {"date": date.today().isoformat(), "device": device_name(device), "torch": torch.__version__, "commit": commit()[:12]}
    (out / "gpu.json").write_text(json.dumps({"facts": facts, "parts": [asdict(part) for part in found]}, indent=1) + "\n")
    text = ["# On one GPU", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    (out / "gpu.md").write_text("\n".join([*text, *(line for part in found for line in table(part))]))


if __name__ == "__main__":
    sys.exit(main())
