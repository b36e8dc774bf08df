"""Does everything work on this cluster? For slurm/acceptance.sh, which calls it within a job.

    python -m bench.acceptance --out DIR [--device auto|cuda|cpu] -- srun WORDS... python -P

What follows `--` starts a module on all tasks of the job. Collectives, the same losses on every layout as in one process, the
time that skipped layers save, a run that is killed and resumed, and bench.gpu on one GPU; each has a log in DIR. Writes
DIR/acceptance.json, and a line for docs/tested_on.md.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

from bench.acceptance_job import PART_SECONDS, STEPS, Failed, Job, Layout, Part
from bench.gpu_common import Row
from bench.gpu_parts import PARTS
from bench.path_speed import Result
from pretrain.errors import TrainingStopped
from pretrain.ranks.device import device_type
from pretrain.versions import commit

KILLED_AFTER = 10
"""Steps, of those of each run."""
TOLERANCE = 1e-4
"""Between the losses of two layouts, in fp32."""
GPU_SECONDS = 600
LARGER = (
    "--model.hidden_size 2048 --model.num_attention_heads 16 --model.ffn_hidden_size 5632 --data.sequence_length 1024"
    " --ds.bf16.enabled true"
)
"""Sizes of path_speed's model on GPUs, which would be waiting for the CPU otherwise."""


def collectives(job: Job) -> Part:
    """Right results everywhere, at which bandwidth."""
    job.finish(
        "collectives",
        job.start("collectives", "-m", "bench.collectives", "--out", job.out / "collectives.json", "--device", job.device),
    )
    facts = json.loads((job.out / "collectives.json").read_text())
    best = max(
        (row for row in facts["rows"] if row["operation"] == "all_reduce" and row["group"] == "all ranks"),
        key=lambda row: row["bytes"],
    )
    if job.tasks == 1:
        return Part("collectives", True, "one task, so nothing to exchange", facts)
    return Part(
        "collectives",
        True,
        f"right; all_reduce of {best['bytes'] / 2**20:.0f} MiB at {best['gigabytes_per_second']:.2f} GB/s",
        facts,
    )


def parity(job: Job) -> Part:
    """Every layout has the losses of one process."""
    job.finish("one_process", job.train("one_process", Layout(), alone=True))
    if job.tasks == 1:
        return Part("parity", True, "one task, so no layout to compare")
    reference, far = job.losses("one_process"), {}
    for layout in job.layouts:
        name = layout.name(job.tasks)
        job.finish(name, job.train(name, layout))
        far[name] = furthest(job.losses(name), reference)
    words = ", ".join(f"{name} {distance:.1e}" for name, distance in far.items())
    return Part(
        "parity",
        max(far.values()) <= TOLERANCE,
        f"losses of {STEPS} steps within {words} of one process (at most {TOLERANCE:g})",
        far,
    )


def furthest(found: Sequence[float], reference: Sequence[float]) -> float:
    """Largest difference between two runs' losses.

    Raises:
        Failed: they do not have the same steps.
    """
    if len(found) != len(reference):
        raise Failed(f"{len(found)} steps instead of {len(reference)}")
    return max(abs(a - b) for a, b in zip(found, reference))


def kill_and_resume(job: Job) -> Part:
    """SIGKILL for all tasks amid a run; the same command again gives the losses of the unbroken run."""
    layout = job.layouts[-1]
    name = "killed"
    process, deadline = job.train(name, layout), time.time() + PART_SECONDS
    while len(job.losses(name) if (job.out / name / "metrics.jsonl").exists() else []) < KILLED_AFTER:
        if process.poll() is not None or time.time() > deadline:
            process.kill()
            raise Failed(f"did not come to step {KILLED_AFTER}; {job.out / name}.log")
        time.sleep(0.1)
    steps = subprocess.run(
        ["squeue", "--steps", "--noheader", "--jobs", job.number, "--format", "%i %j"], capture_output=True, text=True, check=True
    ).stdout
    if not (step := re.search(rf"(\S+) {name}$", steps, re.MULTILINE)):
        raise Failed(f"SLURM does not know its step: {steps.strip() or 'none is running'}")
    subprocess.run(["scancel", "--signal=KILL", step[1]], check=True)
    process.wait(PART_SECONDS)
    before = len(job.losses(name))
    if before >= STEPS:
        raise Failed("it was done before it was killed")
    job.finish("resumed", job.train(name, layout))
    far = furthest(job.losses(name), job.losses(layout.name(job.tasks) if job.tasks > 1 else "one_process"))
    words = f"{layout.name(job.tasks)} killed after step {before}, resumed: losses within {far:.1e} of the unbroken run's"
    return Part("kill and resume", far <= TOLERANCE, words, {"killed_after": before, "distance": far})


def path_speed(job: Job) -> Part:
    """Half the layers take the share of the time that their operations promise."""
    larger = LARGER.split() if job.device == "cuda" else []
    ratios, bars = {}, {}
    for layout in dict.fromkeys([job.layouts[0], job.layouts[-1]]):
        name = f"path_speed_{layout.name(job.tasks)}"
        # A pipeline of few micro-batches is mostly empty.
        samples = (16 if layout.pipeline > 1 else 8) * (job.tasks // (layout.tensor * layout.pipeline))
        batch = ["--ds.train_micro_batch_size_per_gpu", 4, "--ds.train_batch_size", samples]
        folder = job.out / name
        job.finish(
            name,
            job.start(
                name,
                "-m",
                "bench.path_speed",
                "--rounds",
                job.rounds,
                "--out",
                folder,
                "--device",
                job.device,
                *layout.options,
                *batch,
                *larger,
            ),
        )
        (found,) = folder.glob("*.json")
        result = Result(**json.loads(found.read_text()))
        ratios[layout.name(job.tasks)] = result.ratio("half", "all") / result.ideal
        bars[layout.name(job.tasks)] = result.bar
    words = ", ".join(f"{name} {ratio:.3f} (at most {bars[name]:g})" for name, ratio in ratios.items())
    good = all(ratio <= bars[name] for name, ratio in ratios.items())
    return Part("path speed", good, f"half the layers, measured over ideal: {words}", {"ratios": ratios, "bars": bars})


def one_gpu(job: Job) -> Part:
    """bench.gpu's parts and bars, on one of the GPUs."""
    if job.device != "cuda":
        return Part("one gpu", True, "no GPU in this job")
    found = job.out / "gpu" / "gpu.json"
    try:
        job.finish("gpu", job.start("gpu", "-m", "bench.gpu", "--out", found.parent, alone=True), GPU_SECONDS)
    except Failed:  # a bar that is not met is among them
        if not found.exists():
            raise
    return judge_gpu(json.loads(found.read_text())["parts"])


def judge_gpu(parts: Sequence[dict]) -> Part:
    """Return what failed or is missing of bench.gpu's parts, or how many lines hold."""
    missing = PARTS.keys() - {part["name"] for part in parts}
    failed = [f"{name}: did not run" for name in PARTS if name in missing]
    failed += [f"{part['name']}: {part['problem']}" for part in parts if part["problem"] is not None]
    rows = [(part["name"], Row(**row)) for part in parts for row in part["rows"]]
    failed += [f"{name}: {row.what} {row.shown} {row.wanted}".strip() for name, row in rows if not row.good]
    return Part("one gpu", not failed, "; ".join(failed) or f"bench.gpu: {len(rows)} lines hold", {"parts": list(parts)})


def judged(part: Callable[[Job], Part], job: Job) -> Part:
    """What came of a part, told as it comes."""
    name, began = part.__name__.replace("_", " "), time.time()
    try:
        result = part(job)
    except (Failed, TrainingStopped, OSError, ValueError, subprocess.SubprocessError) as error:
        result = Part(name, False, str(error))
    print(f"{'ok    ' if result.good else 'FAILED'}  {name}: {result.words}  ({time.time() - began:.0f} s)", flush=True)
    return Part(name, result.good, result.words, result.facts, round(time.time() - began, 1))


def line(job: Job, parts: Sequence[Part]) -> str:
    """Return a row of the table in docs/tested_on.md."""
    hardware = next((part.facts["device"] for part in parts if "device" in part.facts), "unknown device")
    nccl = next((f", NCCL {part.facts['nccl']}" for part in parts if part.facts.get("nccl")), "")
    results = "; ".join(part.words if part.good else f"**{part.name}: {part.words}**" for part in parts)
    return (
        f"| {date.today()} | {job.nodes} nodes, {job.tasks} tasks, {hardware} | torch {version('torch')}{nccl} |"
        f" {short(commit())} | {results} |"
    )


def short(commit: str) -> str:
    return commit[:12] + "-dirty" * commit.endswith("-dirty")


def main() -> int:
    """0 if everything holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--rounds", type=int, default=8, help="of path_speed")
    parser.add_argument("launcher", nargs="+")
    args = parser.parse_args()
    if args.out.is_dir() and any(args.out.iterdir()):
        parser.error(f"--out {args.out}: holds something, perhaps an earlier acceptance; choose another folder")
    args.out.mkdir(parents=True, exist_ok=True)
    number, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NUM_NODES"]
    job = Job(
        number,
        int(os.environ.get("SLURM_NTASKS", nodes)),
        int(nodes),
        args.out.absolute(),
        device_type(args.device),
        args.rounds,
        args.launcher,
    )
    wanted, parts = (collectives, parity, kill_and_resume, path_speed, one_gpu), []
    for part in wanted:
        parts.append(judged(part, job))  # written each time: the job may come to its limit
        good, told = len(parts) == len(wanted) and all(part.good for part in parts), line(job, parts)
        (job.out / "acceptance.json").write_text(
            json.dumps({"good": good, "line": told, "parts": [asdict(part) for part in parts]}, indent=1) + "\n"
        )
    print(f"\n{job.out / 'acceptance.json'}; the line for docs/tested_on.md:\n{told}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
