"""What may differ from the run that a checkpoint is of, where there are several sources."""

import pytest

from pretrain.checkpoint.changes import require_allowed
from pretrain.config import Run
from pretrain.errors import UserError


@pytest.fixture
def of(project):
    def make(*train: str, weight: float = 1.0) -> Run:
        sources = ", ".join(f"{{name: s{n}, train: {path}, weight: {weight}}}" for n, path in enumerate(train))
        return project.run("data.train=null", "data.valid=null", f"data.sources=[{sources}]")

    return make


def test_other_tokens_of_one_source_are_named_by_it(of):
    run = of("a", "b")
    with pytest.raises(
        UserError, match="recipe.data.sources.s1.train holds other tokens than it did then.* --resume-changing"
    ) as told:
        require_allowed(run, run, [], "there", ["data.sources.s1.train"])
    name = str(told.value).rpartition("--resume-changing ")[2]
    require_allowed(run, run, [name], "there", ["data.sources.s1.train"])
    require_allowed(run, run, ["sources"], "there", ["data.sources.s1.train"])


def test_other_tokens_under_another_name_and_another_weight_are_listed(of):
    with pytest.raises(UserError, match="recipe.data.sources is .* there, .* here") as told:
        require_allowed(of("a", "c", weight=2.0), of("a", "b"), [], "there", ["data.sources.s1.train"])
    names = str(told.value).rpartition("--resume-changing ")[2].split(",")
    require_allowed(of("a", "c", weight=2.0), of("a", "b"), names, "there", ["data.sources.s1.train"])
