"""docs/results.md says what the committed rows say: every number of its tables, worked out again from the JSON alone."""

import json
import re
from math import sqrt
from pathlib import Path

import pytest
from scipy.stats import t as student

PROJECT = Path(__file__).resolve().parents[2]
STUDIES = PROJECT / "bench/studies/ul2_12_layers"
TEXT = (PROJECT / "docs/results.md").read_text()
METHOD, RATE = "ds.progressive_subnetwork.method", "ds.optimizer.params.lr"
RATES = ("2e-3", "4e-3", "8e-3", "16e-3")


def rows(name: str) -> dict[str, dict[int, dict]]:
    """By method and seed."""
    found: dict[str, dict[int, dict]] = {}
    for line in (STUDIES / f"{name}.rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["method"], {})[row["seed"]] = row
    return found


def table(first: str) -> list[list[str]]:
    """The body of the table whose head begins so, as cells."""
    head = next(at for at, line in enumerate(TEXT.splitlines()) if line.startswith(f"| {first} |"))
    body = []
    for line in TEXT.splitlines()[head + 2 :]:
        if not line.startswith("|"):
            return body
        body.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return body


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


@pytest.fixture(scope="module")
def study():
    return rows("study")


def test_every_method_has_the_same_seeds(study):
    assert {tuple(sorted(runs)) for runs in study.values()} == {(1, 2, 3)}
    assert len({line for runs in study.values() for row in runs.values() for line in row["made_with"] if line.startswith("code ")}) == 1
    assert len({json.dumps(row["data"], sort_keys=True) for runs in study.values() for row in runs.values()}) == 1


def test_final_losses(study):
    body = table("method")
    assert [line[0] for line in body] == list(study)
    full = sum(row["evaluations"][-1]["layer_flops"] for row in study["full"].values())
    for name, rate, steps, fewer, loss, error in body:
        runs = study[name].values()
        mean, standard_error = mean_and_error([row["losses"]["all"] for row in runs])
        assert {row['settings'][RATE] for row in runs} == {float(rate)}, name
        assert {f"{row['step']:,}" for row in runs} == {steps}
        assert (loss, error) == (f"{mean:.4f}", f"{standard_error:.4f}"), name
        assert fewer == f"{full / sum(row['evaluations'][-1]['layer_flops'] for row in runs):.2f}", name


def test_paired_differences(study):
    body = table("first minus second")
    assert len(body) >= 6
    for pair, mean, error, interval, *_ in body:
        first, second = pair.split(" − ")
        difference, standard_error = mean_and_error([study[first][seed]["losses"]["all"] - study[second][seed]["losses"]["all"] for seed in (1, 2, 3)])
        half = float(student.ppf(0.975, 2)) * standard_error
        assert (mean, error) == (f"{difference:+.4f}", f"{standard_error:.4f}"), pair
        assert interval == f"{difference - half:+.4f} to {difference + half:+.4f}", pair


def test_nothing_is_claimed_beyond_its_error_bars(study):
    """Wherever a line of the table says that one is better or worse, its interval leaves out zero; elsewhere it says that nothing is shown."""
    for pair, mean, _, interval, verdict in table("first minus second"):
        low, high = map(float, interval.split(" to "))
        first = pair.split(" − ")[0]
        wanted = f"{first} is better" if high < 0 else f"{first} is worse" if low > 0 else "not shown"
        assert verdict == wanted, pair


def test_learning_rates(study):
    """A pilot of 300 steps, and seed 1 in full length, of which the study has some; the best of a line is bold."""
    pilot, late = rows("learning_rates"), rows("learning_rates_full_length")
    in_study = {(row["settings"][METHOD], row["settings"][RATE]): row for runs in study.values() for row in runs.values() if (row["seed"], row["step"]) == (1, 900)}
    for line, *cells in table("learning rate"):
        method, steps = line.split(", ")
        losses = {}
        for rate in RATES:
            name = f"{method}_{rate.replace('-', '')}"
            row = pilot[name][0] if name in pilot else None
            if steps == "900 steps":
                row = late[name][1] if name in late else in_study.get((method, float(rate)))
            if row:
                assert (row["settings"][METHOD], row["settings"][RATE], f"{row['step']} steps") == (method, float(rate), steps)
                losses[rate] = f"{row['losses']['all']:.4f}"
        best = min(losses.values())
        assert cells == ["–" if rate not in losses else f"**{best}**" if losses[rate] == best else losses[rate] for rate in RATES], line


def test_parts(study):
    for name, *cells in table("held-out loss of"):
        kept = ["first_3", "first_6", "first_9", "every_other"]
        assert cells == [f"{mean_and_error([row['parts'][part] for row in study[name].values()])[0]:.3f}" for part in kept], name


def test_no_text_of_the_corpus_or_place_of_a_machine_is_committed():
    for file in STUDIES.glob("*.rows.jsonl"):
        assert not re.search(r'"/[a-z]', file.read_text()), f"{file}: holds a path"
