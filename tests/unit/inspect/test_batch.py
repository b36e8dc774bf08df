"""`inspect batch` shows what is there, in the right colours."""

import re
import subprocess
import sys

import numpy as np
import pytest
from rich.text import Text

from pretrain.data.loader import open_data
from pretrain.inspect.batch import _shown, as_text, roles
from tests.support.project import BERT


def inspect(project, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pretrain", "inspect", "batch", str(project.recipe), "--ds-config", str(project.ds), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("settings", [{}, {"data.objective": "causal"}, BERT], ids=["ul2", "causal", "mlm"])
def test_the_command_shows_every_example_and_writes_a_picture(project, tmp_path, settings):
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    done = inspect(project, "--step", "3", "--out", str(tmp_path / "mask.png"), *words)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    run = project.run(*(f"{key}={value}" for key, value in settings.items()))
    data = open_data(run)
    batch = data.train.batch(2 * run.batch, run.micro_batch)
    data.close()
    lines = [line for line in done.stdout.splitlines() if line.startswith("example ")]
    assert len(lines) == sum(int(row.max()) + 1 for row in batch.segments)
    assert (
        f"step 3, sample 1: {int((batch.segments[1] >= 0).sum())} of 64 positions filled, {int(batch.targets[1].sum())} predicted"
        in done.stdout
    )
    assert (tmp_path / "mask.png").stat().st_size > 5000


def test_roles_are_those_of_the_examples(project):
    data = open_data(project.run())
    batch, tokenizer = data.train.batch(0, 8), data.tokenizer
    data.close()
    for row in range(8):
        for example in range(batch.segments[row].max() + 1):
            places = np.flatnonzero(batch.segments[row] == example)
            found = roles(batch, row, example, tokenizer, in_place=False)
            assert found[0] == "reserved", "the mode token"
            cut = int(batch.prefix[row, places].sum())
            assert set(found[1:cut]) <= {"prefix", "reserved"}
            assert set(found[cut:]) <= {"target", "reserved"}
            shown = as_text(batch, row, example, tokenizer, in_place=False)
            assert shown.plain.startswith("[") and shown.plain.endswith("</s>")


@pytest.fixture(params=["ul2", "causal", "mlm"])
def examples(request, project):
    """Shows the examples of two samples, each as `as_text` does; and how many tokens count in the loss."""
    settings = {**(BERT if request.param == "mlm" else {}), "data.objective": request.param}
    data = open_data(project.run(*(f"{key}={value}" for key, value in settings.items())))
    batch, tokenizer = data.train.batch(0, 2), data.tokenizer
    data.close()
    places = [(row, example) for row in range(2) for example in range(batch.segments[row].max() + 1)]

    def shown(**how) -> list[Text]:
        return [as_text(batch, row, example, tokenizer, request.param == "mlm", **how) for row, example in places]

    return shown, int(batch.targets.sum())


def test_what_counts_in_the_loss_is_underlined(examples):
    shown, targets = examples
    assert sum("underline" in str(span.style) for text in shown() for span in text.spans) == targets


def test_without_colours_what_counts_is_between_marks(examples):
    """As through a pipe: the marks hold what is underlined in a terminal, and nothing else."""
    shown, _ = examples
    for plain, marked in zip(shown(), shown(marked=True)):
        counted = "".join(plain.plain[span.start : span.end] for span in plain.spans if "underline" in str(span.style))
        assert "".join(re.findall("\u00ab(.*?)\u00bb", marked.plain, re.DOTALL)) == counted and counted
        assert re.sub("[\u00ab\u00bb]", "", marked.plain) == plain.plain


def test_characters_spelt_in_bytes_are_shown_as_characters(project):
    data = open_data(project.run())
    data.close()
    tokenizer = data.tokenizer
    ids = np.array(tokenizer.processor.encode("世界 🙂\n\tend"))
    assert "".join(_shown(tokenizer, ids)) == " 世··界·· 🙂···⏎\n⇥end" and len(_shown(tokenizer, ids)) == len(ids)
    assert "".join(_shown(tokenizer, ids[:3])).startswith(" <0xE4>"), "cut off"


def test_a_step_beyond_the_run_is_refused(project):
    done = inspect(project, "--step", "21")
    assert done.returncode == 2 and "the run has steps 1 to 20" in done.stderr
