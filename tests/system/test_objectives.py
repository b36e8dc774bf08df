"""BERT and a causal decoder train alike on every layout, too."""

import pytest

from tests.support.layouts import APART, RECOMPUTE, REPLICAS, TOLERANCE, distances, layout, train
from tests.support.project import BERT

pytestmark = [pytest.mark.dist, pytest.mark.long]
CAUSAL = {"data.objective": "causal"}
OBJECTIVES = {"bert": BERT, "gpt": CAUSAL}
ONE = {
    f"{name}{apart}": layout(**more, **settings)
    for name, settings in OBJECTIVES.items()
    for apart, more in (("", {}), (" apart", APART))
}


def cases(layouts: dict[str, dict]) -> dict[str, dict]:
    return {f"{name} {where}": {**how, **settings} for name, settings in OBJECTIVES.items() for where, how in layouts.items()}


TWO = cases(
    {
        "TP2": layout(tensor=2),
        "PP2 with two virtual chunks": layout(pipeline=2, virtual=2),
        "DP2 apart": layout(**APART),
        "DP2 with ZeRO-3": layout(zero=3, **REPLICAS),
    }
)
FOUR = cases({"TP2 x PP2 with sequence parallelism": layout(tensor=2, pipeline=2, sequence=True)}) | {
    "bert TP2 x DP2 apart, recomputed": layout(tensor=2, **APART, **RECOMPUTE, **BERT)
}


@pytest.fixture(scope="module")
def results(project, tmp_path_factory):
    found = {}
    for processes, some in ((1, ONE), (2, TWO), (4, FOUR)):
        part, errors = train(
            project,
            tmp_path_factory.mktemp(f"of{processes}"),
            processes,
            {n: {**s, "steps of test": "10"} for n, s in some.items()},
        )
        assert part, errors
        found |= part
    return found


@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_every_objective_trains_like_one_process(results, name):
    one = results[name.split()[0] + (" apart" if "apart" in name else "")]
    found = distances(results[name], one)
    assert all(value < TOLERANCE for value in found.values()), found
