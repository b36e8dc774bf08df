"""A node that is not like the others, or cannot write, is found before anything is trained."""

import pytest
import torch

from tests.system.test_signals import PP2, only_on_rank_1

pytestmark = pytest.mark.dist


def refused(project, tmp_path, command: str) -> str:
    process = only_on_rank_1(command, project.recipe, "--ds-config", project.ds, "--run-dir", tmp_path / "run", *PP2)
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0 and not (tmp_path / "run" / "metrics.jsonl").exists()
    return errors


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is no CPU build")
@pytest.mark.parametrize(
    "where, words",
    [
        ("export SLURMD_NODENAME=n2", "stopped: not fit: n2: --device cuda: this torch"),
        pytest.param("true", "error: --device cuda: this torch", marks=pytest.mark.long),
    ],
)
def test_a_node_without_devices_is_named_and_a_wish_that_no_node_can_fulfil_is_a_mistake(project, tmp_path, where, words):
    assert words in refused(project, tmp_path, f'{where}; set -- "$@" --device cuda')


def test_another_version_on_one_node_is_named(project, tmp_path):
    """A copy of the metadata of one package, in front of the real one."""
    fake = tmp_path / "site" / "sentencepiece-9.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: sentencepiece\nVersion: 9.9\n")
    errors = refused(project, tmp_path, f"export PYTHONPATH={tmp_path}/site")
    assert (
        "stopped: not fit: " in errors
        and "has sentencepiece 9.9 instead of sentencepiece" in errors
        or "instead of sentencepiece 9.9" in errors
    )
