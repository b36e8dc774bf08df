"""Two replicas on a link of a set rate: what does a step with fewer layers cost, and what does overlap buy?

    python -m bench.link [--mbit 400 ...] [--rounds 3] [--steps 4] [--former COMMIT] [options of train]

Needs root, `ip` and `tc` (Debian's iproute2): two network namespaces on this machine are joined by a veth pair that
`tc tbf` slows down in both directions, and each holds one process. Wall clock. The former program is checked out of git, and
measured by the same worker; it reduced, updated and gathered all layers in every step. A round measures everything once, and all
numbers are medians over the rounds: a minute in which the machine is slow falls on one round of many numbers, not on one number.
In a round, what computing takes comes first, then what sending takes from a processor where the link has no limit; from both,
what `plan` says of each link, before that link is there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.arguments import command, positive
from bench.namespaces import link, why_not

if TYPE_CHECKING:
    from pretrain.config import Run
    from pretrain.plan.wire import Traffic

HOME = Path(__file__).parent
FORMER = "f759c0d"
"""A commit at which each step summed, updated and gathered all layers."""
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


def replicas(names: Sequence[str], code: Path, folder: str, words: Sequence[str], together: bool = True) -> None:
    """Run the worker in both namespaces, as replicas of one job or each alone; it writes into `folder`, alone into its `0` and
    `1`."""
    processes, errors = [], [open(f"{folder}/errors_of_{rank}", "w") for rank in range(len(names))]
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
                stdout=subprocess.DEVNULL, stderr=errors[rank],
            )
        )  # fmt: skip
    try:
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(0.05)
        if any(codes):
            failed = next(rank for rank, code in enumerate(codes) if code)
            raise SystemExit(f"error: replica {failed} failed: {Path(errors[failed].name).read_text()}")
    finally:
        for process, file in zip(processes, errors):
            process.kill()
            process.wait()
            file.close()


def merged(options: Sequence[str]) -> list[str]:
    """Put options of train on top of those of every measurement; of one that is there twice the last one counts."""
    words = [word for option in (*SIZE, *METHOD, *options) for word in option.split("=", 1)]
    if len(words) % 2:
        raise SystemExit(f"error: {words[-1]} has no value")
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
    """The run that is measured, as `plan` sees it; ends with what is wrong with the options."""
    from pretrain.config import read_run
    from pretrain.config.command_line import option_pairs
    from pretrain.errors import UserError

    try:
        return read_run(str(HOME / "path_speed.yaml"), option_pairs(merged(options)), str(HOME / "path_speed.json"), 2)
    except UserError as error:
        sys.exit(f"error: {error}")


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


def one_round(rates: Sequence[int], steps: int, former: str, options: Sequence[str]) -> dict[str, Any]:
    """Measure everything once: what computes alone, what is sent without a limit, and each rate with what `plan` said of it."""
    with link(None) as names:
        computing = measure_alone(names, steps, options)
        most = max(computing, key=int)
        unlimited = {name: measure(names, HOME.parent, steps, [*more, *options])[most] for name, more in NAMED.items()}
    whole = traffic_of(planned(options), int(most)).total
    for row in unlimited.values():
        row["per_byte"] = max(0.0, row["seconds"] - computing[most]) / whole
    found: dict[str, Any] = {"computing": computing, "unlimited": unlimited}
    for mbit in rates:
        predicted = {
            name: predict(computing, unlimited[name]["per_byte"], mbit, [*more, *options]) for name, more in NAMED.items()
        }
        rows: dict[str, Row] = {}
        with link(mbit) as names:
            if former != "none":
                with checkout(former) as code:
                    rows[f"former ({former})"] = measure(names, code, steps, options)
            for name, more in NAMED.items():
                rows[name] = measure(names, HOME.parent, steps, [*more, *options])
        found[f"{mbit} Mbit/s"] = {"rows": rows, "predicted": predicted}
    return found


def middle(rounds: Sequence[Any]) -> Any:
    """Numbers of all rounds, each the median of its rounds; `rounds` are dictionaries of the same keys, or numbers."""
    if isinstance(rounds[0], dict):
        return {key: middle([one[key] for one in rounds]) for key in rounds[0]}
    return median(rounds)


def require(args: argparse.Namespace, options: Sequence[str]) -> None:
    """End here, not after an hour, if something of it cannot be."""
    run = planned(options)
    if len({stage.path_length for stage in run.method.stages}) < 2:
        sys.exit("error: command line: path_lengths needs two lengths at least, to compare steps with more and with fewer layers")
    known = ["git", "rev-parse", "--verify", "--quiet", f"{args.former}^{{commit}}"]
    if args.former != "none" and subprocess.run(known, cwd=HOME.parent, capture_output=True).returncode != 0:
        sys.exit(f"error: command line: --former {args.former}: no such commit; use one of `git log`, or none")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: command line: --out {args.out}: {error.strerror}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--mbit", type=positive, nargs="+", default=[400], help="rates of the link in each direction; 400")
    parser.add_argument("--steps", type=positive, default=4, help="steps of each number of layers in a round; 4")
    parser.add_argument("--rounds", type=positive, default=3, help="how often everything is measured; 3")
    parser.add_argument("--former", default=FORMER, metavar="COMMIT", help=f"the program to compare with, or none; {FORMER}")
    parser.add_argument("--out", type=Path, default=HOME / "results")
    args, options = parser.parse_known_args()
    options = [*ONE_MICRO_BATCH, *options]
    if (problem := why_not()) is not None:
        sys.exit(f"error: {problem}")
    require(args, options)
    from pretrain.versions import device_name

    facts: dict[str, object] = {
        "date": date.today().isoformat(),
        "device": device_name("cpu"),
        "link": "both ways at its rate",
        "command": command("link"),
        "former": args.former,
    }
    rounds = [one_round(args.mbit, args.steps, args.former, options) for _ in range(args.rounds)]
    found = middle(rounds)
    computing, unlimited = found["computing"], found["unlimited"]
    text = ["# Two replicas on a slow link", "", *(f"- {key}: {value}" for key, value in facts.items())]
    text += ["- nothing sent: " + ", ".join(f"{k} layers {s * 1000:.0f} ms" for k, s in computing.items())]
    told = [f"{name} {row['seconds'] * 1000:.0f} ms or {row['per_byte'] * 1e9:.2f} ns a byte" for name, row in unlimited.items()]
    text += [f"- sent without a limit, {max(computing, key=int)} layers: {'; '.join(told)}", ""]
    for mbit in args.mbit:
        text += lines(mbit, found[f"{mbit} Mbit/s"]["rows"], computing, found[f"{mbit} Mbit/s"]["predicted"])
    text += [textwrap.fill(EXPLAINED, 130), ""]
    (args.out / "link.json").write_text(json.dumps({"facts": facts, "median": found, "rounds": rounds}, indent=1) + "\n")
    (args.out / "link.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
