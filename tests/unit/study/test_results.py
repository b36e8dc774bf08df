"""docs/results.md and docs/results_details.md say what the committed rows say: every number of their tables, worked out again
from the JSON alone."""

import json
import re
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

PROJECT = Path(__file__).resolve().parents[3]
STUDIES = PROJECT / "bench/studies/ul2_12_layers"
TEXT = (PROJECT / "docs/results_details.md").read_text()
METHOD, RATE = "ds.progressive_subnetwork.method", "ds.optimizer.params.lr"
RATES = ("2e-3", "4e-3", "8e-3", "16e-3")
PAIRS = ("first minus second", "mean of pairs", "standard error", "95 % interval", "")


def rows(name: str) -> dict[str, dict[int, dict]]:
    """By method and seed."""
    found: dict[str, dict[int, dict]] = {}
    for line in (STUDIES / f"{name}.rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["method"], {})[row["seed"]] = row
    return found


def table(*names: str, text: str = TEXT) -> list[list[str]]:
    """The body of the table with this head, as cells."""
    head = text.splitlines().index(f"| {' | '.join(names)} |".replace("|  |", "| |"))
    body = []
    for line in text.splitlines()[head + 2 :]:
        if not line.startswith("|"):
            return body
        body.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return body


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def interval_of(mean: float, standard_error: float, seeds: int = 3) -> str:
    """The 95 % interval."""
    half = float(student.ppf(0.975, seeds - 1)) * standard_error
    return f"{mean - half:+.4f} to {mean + half:+.4f}"


@pytest.fixture(scope="module")
def study():
    return rows("study")


def test_every_method_has_the_same_seeds(study):
    assert {tuple(sorted(runs)) for runs in study.values()} == {(1, 2, 3)}
    assert (
        len({line for runs in study.values() for row in runs.values() for line in row["made_with"] if line.startswith("code ")})
        == 1
    )
    assert len({json.dumps(row["data"], sort_keys=True) for runs in study.values() for row in runs.values()}) == 1


def test_final_losses(study):
    body = table(
        "method",
        "learning rate",
        "steps",
        "layer FLOPs, times fewer",
        "model FLOPs, times fewer",
        "held-out loss",
        "standard error",
    )
    assert [line[0] for line in body] == list(study)
    for name, rate, steps, fewer_layer, fewer_model, loss, error in body:
        runs = study[name].values()
        mean, standard_error = mean_and_error([row["losses"]["all"] for row in runs])
        assert {row["settings"][RATE] for row in runs} == {float(rate)}, name
        assert {f"{row['step']:,}" for row in runs} == {steps}
        assert (loss, error) == (f"{mean:.4f}", f"{standard_error:.4f}"), name
        for fewer, kind in ((fewer_layer, "layer_flops"), (fewer_model, "model_flops")):
            theirs = sum(row["evaluations"][-1][kind] for row in study["full"].values())
            ours = sum(row["evaluations"][-1][kind] for row in runs)
            assert fewer == f"{theirs / ours:.2f}", name


def test_paired_differences(study):
    body = table(*PAIRS)
    assert len(body) == 16
    assert {f"raptr − {other}" for other in ("full_4e3", "full_short_4e3", "constant", "pld", "ild_dts", "stacking")} <= {
        line[0] for line in body
    }
    for pair, mean, error, interval, *_ in body:
        first, second = pair.split(" − ")
        difference, standard_error = mean_and_error(
            [study[first][seed]["losses"]["all"] - study[second][seed]["losses"]["all"] for seed in (1, 2, 3)]
        )
        assert (mean, error) == (f"{difference:+.4f}", f"{standard_error:.4f}"), pair
        assert interval == interval_of(difference, standard_error), pair


def test_nothing_is_claimed_beyond_its_error_bars(study):
    """Wherever a line of the table says that one is better or worse, its interval leaves out zero; elsewhere it says that nothing
    is shown."""
    for pair, _, _, interval, verdict in table(*PAIRS):
        low, high = map(float, interval.split(" to "))
        first = pair.split(" − ")[0]
        wanted = f"{first} is better" if high < 0 else f"{first} is worse" if low > 0 else "not shown"
        assert verdict == wanted, pair


@pytest.mark.parametrize(
    ("name", "what", "baseline", "methods"),
    [
        ("study", "`full_4e3` half-way", "full_4e3", ["full_short_4e3", "raptr", "constant", "stacking", "pld", "ild_dts"]),
        ("sleeping", "`full` half-way, 8 seeds", "full",
         ["full_short", "none_1", "none_2", "exact_2_4e3", "constant_1", "stacking"]),
    ],
)  # fmt: skip
def test_against_the_baseline_stopped_half_way(name, what, baseline, methods):
    study, kinds = rows(name), ("layer_flops", "model_flops")
    head = (f"minus {what}", "at equal layer FLOPs", "95 % interval", "", "at equal model FLOPs", "95 % interval", "")
    body = table(*head)
    assert [line[0] for line in body] == methods
    for name, *cells in body:
        for kind, (mean, interval, verdict) in zip(kinds, (cells[:3], cells[3:])):
            differences = []
            for seed, row in study[name].items():
                curve = study[baseline][seed]["evaluations"]
                stopped = np.interp(row["evaluations"][-1][kind], [at[kind] for at in curve], [at["loss"] for at in curve])
                differences.append(row["losses"]["all"] - float(stopped))
            difference, error = mean_and_error(differences)
            assert (mean, interval) == (f"{difference:+.4f}", interval_of(difference, error, len(differences))), name
            low, high = map(float, interval.split(" to "))
            assert verdict == ("better" if high < 0 else "worse" if low > 0 else "not shown"), name


def test_learning_rates(study):
    """A pilot of 300 steps, and seed 1 in full length, of which the study has some; the best of a line is bold."""
    pilot, late = rows("learning_rates"), rows("learning_rates_full_length")
    in_study = {
        (row["settings"][METHOD], row["settings"][RATE]): row
        for runs in study.values()
        for row in runs.values()
        if (row["seed"], row["step"]) == (1, 900)
    }
    body = table("learning rate", *RATES)
    assert [line[0] for line in body] == [
        f"{name}, {steps} steps" for name in ("full", "raptr", "constant", "stacking") for steps in (300, 900)
    ] + ["pld, 900 steps", "ild_dts, 900 steps"]
    for line, *cells in body:
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
        assert cells == [
            "–" if rate not in losses else f"**{best}**" if losses[rate] == best else losses[rate] for rate in RATES
        ], line


def test_parts(study):
    body = table("held-out loss of", "first 3 layers", "first 6", "first 9", "five of twelve skipped", "more than with all")
    assert [line[0] for line in body] == list(study)
    for name, *cells in body:
        parts = [
            [row["parts"][part] for row in study[name].values()] for part in ("first_3", "first_6", "first_9", "every_other")
        ]
        more = [row["parts"]["every_other"] - row["losses"]["all"] for row in study[name].values()]
        assert cells == [f"{mean_and_error(losses)[0]:.3f}" for losses in (*parts, more)], name


def test_width_against_depth():
    study = rows("width")
    assert {tuple(sorted(runs)) for runs in study.values()} == {(1, 2, 3)}
    assert len({json.dumps(row["data"], sort_keys=True) for runs in study.values() for row in runs.values()}) == 1
    head = ("method, 12 layers", "layer FLOPs, times fewer", "model FLOPs, times fewer", "held-out loss", "standard error")
    assert [line[0] for line in table(*head)] == ["full", "raptr", "raptr_parts", "raptr_ffn"]
    for name, fewer_layer, fewer_model, loss, error in table(*head):
        runs = study[name].values()
        mean, standard_error = mean_and_error([row["losses"]["all"] for row in runs])
        assert {(row["settings"][RATE], row["step"]) for row in runs} == {(4e-3, 900)}, name
        assert (loss, error) == (f"{mean:.4f}", f"{standard_error:.4f}"), name
        for fewer, kind in ((fewer_layer, "layer_flops"), (fewer_model, "model_flops")):
            theirs = sum(row["evaluations"][-1][kind] for row in study["full"].values())
            assert fewer == f"{theirs / sum(row['evaluations'][-1][kind] for row in runs):.2f}", name
    for pair, mean, error, interval, verdict in table("width and depth, first minus second", *PAIRS[1:]):
        first, second = pair.split(" − ")
        difference, standard_error = mean_and_error(
            [study[first][seed]["losses"]["all"] - study[second][seed]["losses"]["all"] for seed in (1, 2, 3)]
        )
        assert (mean, error) == (f"{difference:+.4f}", f"{standard_error:.4f}"), pair
        assert interval == interval_of(difference, standard_error), pair
        low, high = map(float, interval.split(" to "))
        assert verdict == (f"{first} is better" if high < 0 else f"{first} is worse" if low > 0 else "not shown"), pair


def losses_of(study: dict[str, dict[int, dict]], first: str, second: str) -> list[float]:
    """Differences by seed, of the seeds that both have."""
    seeds = sorted(study[first].keys() & study[second].keys())
    return [study[first][seed]["losses"]["all"] - study[second][seed]["losses"]["all"] for seed in seeds]


def test_sleeping_layers():
    study = rows("sleeping")
    seeds = sorted(study["full"])
    head = ("sleeping layers", "learning rate", "layer FLOPs, times fewer", "held-out loss", "standard error")
    body = table(*head)
    named = [line[0] for line in body]
    assert len(named) == 9 and {tuple(sorted(study[name])) for name in named} == {tuple(seeds)} and 11 not in seeds
    for name, rate, fewer, loss, error in body:
        mean, standard_error = mean_and_error([row["losses"]["all"] for row in study[name].values()])
        steps = 675 if name == "full_short" else 900
        assert {(row["settings"][RATE], row["step"]) for row in study[name].values()} == {(float(rate), steps)}, name
        assert (loss, error) == (f"{mean:.4f}", f"{standard_error:.4f}"), name
        theirs, own = (sum(row["evaluations"][-1]["layer_flops"] for row in study[one].values()) for one in ("full", name))
        assert fewer == f"{theirs / own:.2f}", name
    for pair, mean, error, interval, verdict in table("sleeping layers, first minus second", *PAIRS[1:]):
        first, second = pair.split(" − ")
        difference, standard_error = mean_and_error(losses_of(study, first, second))
        assert (mean, error) == (f"{difference:+.4f}", f"{standard_error:.4f}"), pair
        assert interval == interval_of(difference, standard_error, len(seeds)), pair
        low, high = map(float, interval.split(" to "))
        assert verdict == (f"{first} is better" if high < 0 else f"{first} is worse" if low > 0 else "not shown"), pair
    found = rows("sleeping_rates")
    for name, *losses in table("rates, seed 11", *RATES):
        runs = [found.get(name + "_" + rate.replace("-", "")) for rate in RATES]
        assert losses == [f"{row[11]['losses']['all']:.4f}" if row else "–" for row in runs], name
        best = RATES[losses.index(min(losses))]
        assert best == ("8e-3" if name == "exact_2" else "4e-3"), "as the page says"


def test_half_widths():
    """What three seeds foretold, and what came."""
    study, sleeping = rows("study"), rows("sleeping")
    half = lambda differences, seeds: (
        float(student.ppf(0.975, seeds - 1)) * mean_and_error(differences)[1] * sqrt(len(differences) / seeds)
    )
    for pair, before, foretold, reached in table("half-widths with 8 seeds", "three seeds", "foretold", "reached"):
        now = losses_of(sleeping, *pair.split(" − "))
        three = losses_of(study, *before.split(" − ")) if " − " in before else now[:3]
        assert len(now) == 8 and len(three) == 3
        assert (foretold, reached) == (f"{half(three, 8):.3f}", f"{half(now, 8):.3f}"), pair


def test_answers():
    """The one page: each difference from the rows that it names, its verdict, and what Holm's correction leaves."""
    page = (PROJECT / "docs/results.md").read_text()
    body = table("question", "first minus second", "rows", "seeds", "difference", "95 % interval", "", text=page)
    assert f"{['', 'Eight', 'Nine', 'Ten'][len(body) - 7]} intervals stand above" in page
    chances = {}
    for _, pair, name, seeds, difference, interval, verdict in body:
        values = losses_of(rows(name), *pair.split(" − "))
        mean, error = mean_and_error(values)
        low, high = (mean + sign * float(student.ppf(0.975, len(values) - 1)) * error for sign in (-1, 1))
        assert (seeds, difference, interval) == (str(len(values)), f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}"), pair
        first = pair.split(" − ")[0]
        plain = f"{first} is better" if high < 0 else f"{first} is worse" if low > 0 else "not shown"
        assert verdict.removesuffix(", holds") == plain, pair
        chances[pair] = float(2 * student.sf(abs(mean / error), len(values) - 1)), verdict.endswith("holds")
    left, rejected = len(chances), True
    for chance, holds in sorted(chances.values()):
        rejected = rejected and chance * left <= 0.05
        left -= 1
        assert holds == rejected


def test_no_text_of_the_corpus_or_place_of_a_machine_is_committed():
    for file in STUDIES.glob("*.rows.jsonl"):
        assert not re.search(r'"/[a-z]', file.read_text()), f"{file}: holds a path"


def test_tasks_are_those_of_the_rows():
    """Means and differences of bits a byte, worked out from the JSON alone."""
    losses = {(row["method"], row["seed"]): row["losses"]["all"] for runs in rows("tasks").values() for row in runs.values()}
    methods = ("full_4e3", "raptr", "constant", "stacking")
    values: dict[str, dict[tuple[str, int], float]] = {}
    everything: dict[tuple[str, int], list[float]] = {}
    documents: dict[str, int] = {}
    for line in (STUDIES / "tasks.evals.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["step"] == 900:
            run, bits = (row["method"], row["seed"]), row["metrics"]["bits_per_byte"]["mean"]
            everything.setdefault(run, []).append(bits)
            if row["attention"] == "prefix":
                values.setdefault(row["task"], {})[run] = bits
                documents[row["task"]] = row["documents"]
    assert {len(found) for found in everything.values()} == {20} and len(everything) == 12
    values["mean of 20"] = {run: sum(found) / 20 for run, found in everything.items()}
    documents["mean of 20"] = 2 * sum(documents.values())
    half = float(student.ppf(0.975, 2))

    def cell(found: dict[tuple[str, int], float], method: str) -> str:
        mean, error = mean_and_error([found[method, seed] for seed in (1, 2, 3)])
        return f"± {half * error:.3f}, {mean:.3f}"

    first, *body = table("bits a byte of right answers", "documents", *(f"`{method}`" for method in methods))
    assert first[2:] == [cell(losses, method) for method in methods]
    assert [line[0] for line in body] == list(values)
    for name, count, *cells in body:
        assert count == f"{documents[name]:,}" and cells == [cell(values[name], method) for method in methods]
    for name, *cells in table("minus `full_4e3`, bits a byte", *(f"`{method}`" for method in methods[1:])):
        for method, found in zip(methods[1:], cells, strict=True):
            mean, error = mean_and_error([values[name][method, seed] - values[name]["full_4e3", seed] for seed in (1, 2, 3)])
            assert found == f"{mean:+.3f}, {mean - half * error:+.3f} to {mean + half * error:+.3f}"
