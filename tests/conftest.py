"""Fixtures of all tests: a small real tokenizer and token files, a recipe that trains in milliseconds, one process's groups."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

from pretrain.ranks.libraries import prepare_libraries

prepare_libraries("cpu")  # before Megatron-Core is imported, below and by the tests

from pretrain.ranks.groups import destroy_groups, make_groups  # noqa: E402
from pretrain.ranks.process import Ranks  # noqa: E402
from tests.support.project import DS, RECIPE, VOCABULARY, Project  # noqa: E402
from tests.support.shared import shared_folder  # noqa: E402

pytest_plugins = ["tests.support.studies"]
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and token files, made by the real tools from Python's own documentation; not to be changed."""
    return shared_folder(tmp_path_factory, "project", _make_data)


def _make_data(home: Path) -> None:
    from pydoc_data.topics import topics

    from tokenizer.encode import encode
    from tokenizer.load import load_tokenizer
    from tokenizer.train import train

    texts = list(topics.values())
    for name, part in (("train", texts[:40]), ("valid", texts[40:50])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    train(str(home / "train.jsonl"), VOCABULARY, home / "tokenizer", model_type="bpe")
    for name in ("train", "valid"):
        encode(str(home / f"{name}.jsonl"), load_tokenizer(home / "tokenizer"), home / name)
    (home / "tiny.yaml").write_text(RECIPE.format(vocab=VOCABULARY, home=home))
    (home / "tiny.json").write_text(json.dumps(DS, indent=2))


@pytest.fixture(scope="session")
def project(home: Path) -> Project:
    return Project(home, home / "tiny.yaml", home / "tiny.json")


@pytest.fixture(scope="module")
def ranks(project: Project) -> Iterator[Ranks]:
    """One process's groups, for tests that build models; gone after a file, as `plan` makes its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    recipe = project.run().recipe
    make_groups(recipe.parallel, recipe.seed, torch.device("cpu"))
    yield Ranks(0, 1, torch.device("cpu"))
    destroy_groups()
    dist.destroy_process_group()
