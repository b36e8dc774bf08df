"""What `advise` knows: methods against all layers, from the committed rows of studies.

    python -m bench.evidence

Writes pretrain/advise/evidence.json. Runs are paired with those of all layers by study and seed. A study's runs at another
learning rate than all layers' are left out: the one that there is, `exact_2` of `sleeping`, was chosen by one seed and is bad
with eight others (docs/results_details.md). Where several studies compared a method, a seed's differences are averaged first,
since they begin with the same weights and draw the same paths, and the interval is over seeds. Methods that drop parts of layers
are left out: `advise` scales depth alone.
"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from pretrain.advise.evidence import FILE, Evidence, Measured
from pretrain.config.run import SINCE
from pretrain.data.objectives import OBJECTIVES, ObjectiveKeys
from pretrain.files import write_whole
from pretrain.study.row import Row, read_table
from pretrain.study.statistics import Estimate, grouped
from pretrain.subnetwork.methods import ProgressiveSubnetwork

HOME = Path(__file__).parent / "studies"
STUDIES = {
    "ul2_12_layers/study": "full_4e3",
    "ul2_12_layers/tasks": "full_4e3",
    "ul2_12_layers/width": "full",
    "ul2_12_layers/sleeping": "full",
}
"""Rows, and which method in them is all layers at their best learning rate."""
LEAST = 3
"""Seeds from which an interval is worth showing."""


def main() -> None:
    write_whole(FILE, evidence().text())


def evidence() -> Evidence:
    """Work it out."""
    found: dict[str, list[tuple[str, int, float]]] = defaultdict(list)
    blocks: dict[str, dict[str, Any]] = {}
    facts = set()
    for study, baseline in STUDIES.items():
        (groups,) = grouped(read_table(HOME / f"{study}.rows.jsonl")).values()  # models of one size
        base = next(group for group in groups if group.method == baseline)
        for group in groups:
            if rate_of(group.rows[0]) != rate_of(base.rows[0]):
                continue
            block = block_of(group.rows[0])
            if block["method"] == "full" or block["method"].startswith("raptr_"):
                continue
            name = repr(sorted(block.items()))
            blocks[name] = block
            for mine, its in group.pairs(base):
                found[name].append((study, mine.seed, mine.loss - its.loss))
                facts.add(facts_of(mine))
    (known,) = facts
    measured = []
    for name, pairs in found.items():
        seeds = sorted({seed for _, seed, _ in pairs})
        if len(seeds) >= LEAST:
            estimate = Estimate.of([fmean(difference for _, own, difference in pairs if own == seed) for seed in seeds])
            assert estimate.half_width is not None
            studies = tuple(dict.fromkeys(study for study, *_ in pairs))
            measured.append(
                Measured(
                    blocks[name], round(estimate.mean, 5), round(estimate.half_width, 5), estimate.count, len(pairs), studies
                )
            )
    return Evidence(*known, measured=tuple(measured))


def rate_of(row: Row) -> float:
    """Return the learning rate."""
    return row.settings["ds.optimizer.params.lr"]


def facts_of(row: Row) -> tuple[int, int, int, int, int, str, float]:
    """Return what one can tell of a run beside its method, in the order of `Evidence`."""
    given = {key.removeprefix("recipe.data."): value for key, value in row.settings.items() if key.startswith("recipe.data.")}
    length, objective = given["sequence_length"], given["objective"]
    keys = ObjectiveKeys(**{key: value for key, value in given.items() if key in ObjectiveKeys.model_fields})
    share = round(OBJECTIVES[objective].target_share(keys, length), 3)
    return row.parameters, row.settings["recipe.model.num_layers"], row.steps, row.tokens_per_step, length, objective, share


def block_of(row: Row) -> dict[str, Any]:
    """Return the method's block, without keys that have their default."""
    prefix = "ds.progressive_subnetwork."
    given = {
        key.removeprefix(prefix): value for key, value in row.settings.items() if key.startswith(prefix) and value is not None
    }
    given.setdefault("skipped_update", SINCE[prefix + "skipped_update"])
    keys = TypeAdapter(ProgressiveSubnetwork).validate_python(given)
    return {"method": keys.method, **keys.model_dump(mode="json", exclude_defaults=True)}


if __name__ == "__main__":
    main()
