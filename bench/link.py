"""Two replicas on a link of a set rate: what does a step with fewer layers cost, and what does overlap buy?

    python -m bench.link [--mbit 400] [--steps 6] [--former COMMIT] [options of train]

Needs root, `ip` and `tc` (Debian's iproute2): two network namespaces on this machine are joined by a veth pair that
`tc tbf` slows down in both directions, and each holds one process. Wall clock. The former program is checked out of git, and
measured by the same worker in the same minutes; it reduced, updated and gathered all layers in every step.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median

HOME = Path(__file__).parent
FORMER = "1053206"
"""The last commit before layers were summed, updated and gathered by themselves."""
SIZE = ["--model.hidden_size", "256", "--model.ffn_hidden_size", "768", "--model.num_attention_heads", "4"]
METHOD = ["--ds.progressive_subnetwork.path_lengths", "6-8-10-12", "--data.sequence_length", "128"]
OVERLAP = ["--ds.zero_optimization.overlap_comm", "true"]


def why_not() -> str | None:
    """Return why a link cannot be made here; None if it can."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found; install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    made = subprocess.run(["ip", "netns", "add", f"try{os.getpid()}"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", f"try{os.getpid()}"], capture_output=True)
    return None if made.returncode == 0 else f"ip netns: {made.stderr.strip()}"


@contextmanager
def link(mbit: int) -> Iterator[list[str]]:
    """Two namespaces on a link of `mbit` Mbit/s each way; their names, which are also those of their devices."""
    names = [f"replica{n}x{os.getpid() % 10000}" for n in (0, 1)]
    devices = [name[:15] for name in names]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1])
        for n, (name, device) in enumerate(zip(names, devices)):
            inside = ["ip", "netns", "exec", name]
            _run(*inside, "ip", "address", "add", f"10.91.7.{n + 1}/24", "dev", device)
            for up in (device, "lo"):
                _run(*inside, "ip", "link", "set", up, "up")
            _run(
                *inside,
                "tc",
                "qdisc",
                "add",
                "dev",
                device,
                "root",
                "tbf",
                "rate",
                f"{mbit}mbit",
                "burst",
                "256kb",
                "latency",
                "400ms",
            )
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(words)}: {done.stderr.strip()}")


def measure(names: Sequence[str], code: Path, steps: int, options: Sequence[str]) -> dict[str, dict[str, float]]:
    """Medians of seconds and bytes of a step, by number of layers."""
    with tempfile.TemporaryDirectory() as out:
        processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, str(HOME / "link_worker.py"), str(HOME / "path_speed.yaml"),
                 str(HOME / "path_speed.json"), name[:15], out, str(steps), *SIZE, *METHOD, *options],
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "10.91.7.1", "MASTER_PORT": "29571",
                     "GLOO_SOCKET_IFNAME": name[:15], "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for rank, name in enumerate(names)
        ]  # fmt: skip
        told = [process.communicate()[1] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit(f"error: a replica failed: {told[0] or told[1]}")
        found = json.loads((Path(out) / "link.json").read_text())
    return {layers: {what: median(numbers) for what, numbers in row.items()} for layers, row in found.items()}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with the program as it was at a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "code.tar"
        done = subprocess.run(["git", "archive", "-o", str(archive), commit], cwd=HOME.parent, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"error: --former {commit}: {done.stderr.strip()}")
        shutil.unpack_archive(archive, folder)
        yield Path(folder)


def write(rows: dict[str, dict[str, dict[str, float]]], facts: dict[str, object], out: Path) -> None:
    """Seconds, bytes and what fewer layers buy, as a table and as JSON."""
    lengths = list(next(iter(rows.values())))
    most, least = lengths[0], lengths[-1]
    head = ["", *(f"{k} of {most}" for k in lengths), f"{most} over {least}", "whole run", f"MB sent, {most} and {least}"]
    lines = ["# Two replicas on a slow link", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        seconds = [row[k]["seconds"] for k in lengths]
        whole = seconds[0] * len(seconds) / sum(seconds)
        sent = " / ".join(f"{row[k]['bytes'] / 1e6:.1f}" for k in (most, least))
        numbers = [f"{s * 1000:.0f} ms" for s in seconds]
        lines.append(f"| {name} | {' | '.join(numbers)} | {seconds[0] / seconds[-1]:.2f} | {whole:.2f} | {sent} |")
    lines += ["", "`whole run`: all steps with all layers, over a run of equal stages with these lengths.", ""]
    out.mkdir(parents=True, exist_ok=True)
    (out / "link.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    (out / "link.md").write_text("\n".join(lines))
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--mbit", type=int, default=400, help="rate of the link in each direction; 400")
    parser.add_argument("--steps", type=int, default=6, help="steps that are measured for each number of layers; 6")
    parser.add_argument("--former", default=FORMER, metavar="COMMIT", help=f"the program to compare with, or none; {FORMER}")
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args, options = parser.parse_known_args()
    if (problem := why_not()) is not None:
        sys.exit(f"error: {problem}")
    from pretrain.versions import device_name

    rows: dict[str, dict[str, dict[str, float]]] = {}
    with link(args.mbit) as names:
        if args.former != "none":
            with checkout(args.former) as code:
                rows[f"former ({args.former})"] = measure(names, code, args.steps, options)
        for name, more in (("by layer", []), ("by layer, overlapped", OVERLAP)):
            rows[name] = measure(names, HOME.parent, args.steps, [*more, *options])
    facts: dict[str, object] = {
        "date": date.today().isoformat(),
        "device": device_name("cpu"),
        "link": f"{args.mbit} Mbit/s each way",
        "command": " ".join(["-m bench.link", *sys.argv[1:]]),
    }
    write(rows, facts, args.out)


if __name__ == "__main__":
    main()
