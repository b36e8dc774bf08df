"""Two replicas on a link of a set rate: what does a step with fewer layers cost, and what does overlap buy?

    python -m bench.link [--mbit 400 ...] [--steps 6] [--former COMMIT] [options of train]

Needs root, `ip` and `tc` (Debian's iproute2): two network namespaces on this machine are joined by a veth pair that
`tc tbf` slows down in both directions, and each holds one process. Wall clock. The former program is checked out of git, and
measured by the same worker in the same minutes; it reduced, updated and gathered all layers in every step. What computing takes
is measured first, and what sending takes from a processor where the link has no limit; from both, what `plan` would say of each
link.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.config import Run
    from pretrain.plan.wire import Traffic

HOME = Path(__file__).parent
FORMER = "1053206"
"""The last commit before layers were summed, updated and gathered by themselves."""
SIZE = ["--model.hidden_size", "256", "--model.ffn_hidden_size", "768", "--model.num_attention_heads", "4"]
METHOD = ["--ds.progressive_subnetwork.path_lengths", "6-8-10-12", "--data.sequence_length", "128"]
ONE_MICRO_BATCH = ["--ds.train_micro_batch_size_per_gpu", "8"]
"""Sums overlap with the backward pass of the last one alone."""
OVERLAP = ["--ds.zero_optimization.overlap_comm", "true"]
NAMED: dict[str, list[str]] = {"by layer": [], "by layer, overlapped": OVERLAP}


EXPLAINED = (
    "`whole run`: all steps with all layers, over a run of equal stages with these lengths. `its ideal`: if what is waited for"
    " with all layers shrank with the bytes. `as planned`: what `plan` makes of the rate, of computing alone and of what sending"
    " takes from it; in brackets how far it is off."
)
Row = dict[str, dict[str, float]]
"""By number of layers, seconds and bytes of a step."""


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
def link(mbit: int | None) -> Iterator[list[str]]:
    """Two namespaces on a link of `mbit` Mbit/s each way, None for no limit; their names, which are also those of their
    devices."""
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
            if mbit is not None:
                limit = ["rate", f"{mbit}mbit", "burst", "256kb", "latency", "400ms"]
                _run(*inside, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(words)}: {done.stderr.strip()}")


def replicas(names: Sequence[str], code: Path, folder: str, words: Sequence[str], together: bool = True) -> None:
    """Run the worker in both namespaces, as replicas of one job or each alone; it writes into `folder`, alone into its `0` and
    `1`."""
    processes = []
    for rank, name in enumerate(names):
        out = folder if together else f"{folder}/{rank}"
        Path(out).mkdir(exist_ok=True)
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "10.91.7.1"}
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": f"10.91.7.{rank + 1}"}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, str(HOME / "link_worker.py"), str(HOME / "path_speed.yaml"),
                 str(HOME / "path_speed.json"), name[:15], out, words[0], words[1], *merged(words[2:])],
                env={**os.environ, **(place if together else alone), "MASTER_PORT": "29571", "GLOO_SOCKET_IFNAME": name[:15],
                     "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    told = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"error: a replica failed: {told[0] or told[1]}")


def merged(options: Sequence[str]) -> list[str]:
    """Put options of train on top of those of every measurement; of one that is there twice the last one counts."""
    words = [word for option in (*SIZE, *METHOD, *options) for word in option.split("=", 1)]
    return [word for pair in dict(zip(words[::2], words[1::2])).items() for word in pair]


def measure(names: Sequence[str], code: Path, steps: int, options: Sequence[str]) -> Row:
    """Medians of seconds and bytes of a step, by number of layers."""
    with tempfile.TemporaryDirectory() as folder:
        replicas(names, code, folder, [str(steps), "steps", *options])
        return _medians(Path(folder))


def measure_alone(names: Sequence[str], steps: int, options: Sequence[str]) -> dict[str, float]:
    """Seconds of the same steps where nothing is sent: two processes beside each other, each with its share of the batch."""
    with tempfile.TemporaryDirectory() as folder:
        share = ["--ds.train_batch_size", str(planned(options).batch // 2)]
        replicas(names, HOME.parent, folder, [str(steps), "steps", *options, *share], together=False)
        rows = [_medians(Path(folder) / name) for name in ("0", "1")]
    return {layers: max(row[layers]["seconds"] for row in rows) for layers in rows[0]}


def _medians(folder: Path) -> Row:
    found = json.loads((folder / "link.json").read_text())
    return {layers: {what: median(numbers) for what, numbers in row.items()} for layers, row in found.items()}


def planned(options: Sequence[str]) -> "Run":
    """The run that is measured, as `plan` sees it."""
    from pretrain.config import read_run
    from pretrain.config.command_line import option_pairs

    return read_run(
        str(HOME / "path_speed.yaml"),
        option_pairs(merged(options)),
        str(HOME / "path_speed.json"),
        2,
    )


def traffic_of(run: "Run", layers: int) -> "Traffic":
    """What a step sends that uses so many layers: `plan`'s numbers, but that Gloo's reduce-scatter is an all-reduce."""
    from pretrain.plan.wire import traffic

    stage = next(stage for stage in run.method.stages if stage.path_length == layers)
    sent = traffic(run, stage)
    return replace(sent, sums=2 * sent.sums, outside_sums=2 * sent.outside_sums)


def predict(computing: dict[str, float], per_byte: float, mbit: int, options: Sequence[str]) -> dict[str, float]:
    """Seconds of a step that `plan` makes of what computing takes, and sending from it, by number of layers."""
    from pretrain.plan.link import Work, step_seconds

    run = planned(options)
    zero, most, least = run.ds.zero_optimization, max(map(int, computing)), min(map(int, computing))
    layer = (computing[str(most)] - computing[str(least)]) / (most - least) / run.micro_batches
    found = {}
    for key, seconds in computing.items():
        k = int(key)
        work = Work(seconds, forward=k * layer / 3, backward=k * layer * 2 / 3, layers=k, per_byte=per_byte)
        found[key] = step_seconds(work, traffic_of(run, k), mbit * 1e6 / 8, run.micro_batches, zero.stage, zero.overlap_comm)
    return found


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


def gain(seconds: Sequence[float]) -> float:
    """How many times faster a run of equal stages with these steps is than one with the first, longest, in every step."""
    return seconds[0] * len(seconds) / sum(seconds)


def lines(mbit: int, rows: dict[str, Row], computing: dict[str, float], predicted: dict[str, dict[str, float]]) -> list[str]:
    """A table of one rate.

    The ideal gain has both parts of the longest step shrink with the layers: T(k) = C(k) + (T(L) - C(L)) B(k) / B(L), where C is
    what computing takes alone and B the bytes that were sent.
    """
    lengths = list(computing)
    most, least = lengths[0], lengths[-1]
    head = [
        "",
        *(f"{k} of {most}" for k in lengths),
        f"{most} over {least}",
        "whole run",
        "its ideal",
        f"MB sent, {most} and {least}",
    ]
    found = [f"## {mbit} Mbit/s", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        seconds = [row[k]["seconds"] for k in lengths]
        waits = seconds[0] - computing[most]
        ideal = gain([computing[k] + waits * row[k]["bytes"] / row[most]["bytes"] for k in lengths])
        sent = " / ".join(f"{row[k]['bytes'] / 1e6:.1f}" for k in (most, least))
        numbers = [f"{s * 1000:.0f} ms" for s in seconds]
        ideals = f"{ideal:.2f}" if name in predicted else "–"
        found.append(
            f"| {name} | {' | '.join(numbers)} | {seconds[0] / seconds[-1]:.2f} | {gain(seconds):.2f} | {ideals} | {sent} |"
        )
        if name in predicted:
            told = [predicted[name][k] for k in lengths]
            numbers = [f"{t * 1000:.0f} ({100 * (t / s - 1):+.0f} %)" for t, s in zip(told, seconds)]
            found.append(f"| ... as planned | {' | '.join(numbers)} | {told[0] / told[-1]:.2f} | {gain(told):.2f} | | |")
    return [*found, ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--mbit", type=int, nargs="+", default=[400], help="rates of the link in each direction; 400")
    parser.add_argument("--steps", type=int, default=6, help="steps that are measured for each number of layers; 6")
    parser.add_argument("--former", default=FORMER, metavar="COMMIT", help=f"the program to compare with, or none; {FORMER}")
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args, options = parser.parse_known_args()
    options = [*ONE_MICRO_BATCH, *options]
    if (problem := why_not()) is not None:
        sys.exit(f"error: {problem}")
    from pretrain.versions import device_name

    facts: dict[str, object] = {
        "date": date.today().isoformat(),
        "device": device_name("cpu"),
        "link": "both ways at its rate",
        "command": " ".join(["-m bench.link", *sys.argv[1:]]),
    }
    with link(None) as names:
        computing = measure_alone(names, args.steps, options)
        most = max(computing, key=int)
        whole = traffic_of(planned(options), int(most)).total
        unlimited = {name: measure(names, HOME.parent, args.steps, [*more, *options])[most] for name, more in NAMED.items()}
    per_byte = {name: max(0.0, row["seconds"] - computing[most]) / whole for name, row in unlimited.items()}
    text = ["# Two replicas on a slow link", "", *(f"- {key}: {value}" for key, value in facts.items())]
    text += ["- nothing sent: " + ", ".join(f"{k} layers {s * 1000:.0f} ms" for k, s in computing.items())]
    told = [f"{name} {unlimited[name]['seconds'] * 1000:.0f} ms or {per_byte[name] * 1e9:.2f} ns a byte" for name in NAMED]
    text += [f"- sent without a limit, {most} layers: {'; '.join(told)}", ""]
    results: dict[str, object] = {"facts": facts, "computing": computing, "per_byte": per_byte}
    for mbit in args.mbit:
        predicted = {name: predict(computing, per_byte[name], mbit, [*more, *options]) for name, more in NAMED.items()}
        rows: dict[str, Row] = {}
        with link(mbit) as names:
            if args.former != "none":
                with checkout(args.former) as code:
                    rows[f"former ({args.former})"] = measure(names, code, args.steps, options)
            for name, more in NAMED.items():
                rows[name] = measure(names, HOME.parent, args.steps, [*more, *options])
        results[f"{mbit} Mbit/s"] = {"rows": rows, "predicted": predicted}
        text += lines(mbit, rows, computing, predicted)
    text += [textwrap.fill(EXPLAINED, 130), ""]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "link.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "link.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
