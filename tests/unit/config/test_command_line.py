"""Options of the command line: text that reads as a number, other programs' options, and what is explained."""

import os
import subprocess
import sys
import time

import pytest

from pretrain.config.command_line import all_settings, option_pairs
from pretrain.errors import UserError


@pytest.mark.parametrize("words", ["2024", "true", "1e3", "[a]"])
@pytest.mark.parametrize("key", ["name", "data.train", "data.valid", "data.tokenizer"])
def test_text_that_reads_as_something_else_stays_text(project, key, words):
    recipe = project.run(f"{key}={words}").recipe
    value = recipe
    for part in key.split("."):
        value = getattr(value, part)
    assert value == words


def test_null_is_none_where_a_text_may_be_missing(project):
    assert project.run("data.valid=null").recipe.data.valid is None


@pytest.mark.parametrize("word", ["--local_rank", "--local-rank=0", "--local_rank=3"])
def test_an_option_of_an_old_launcher_is_answered(word):
    with pytest.raises(UserError, match="torch.distributed.launch passes it; start with torchrun"):
        option_pairs([word, "0"])


def test_what_is_explained_has_its_kind_its_choices_and_its_default():
    explained = dict(all_settings())
    assert explained["--on_save_failure"].endswith("[stop | continue; default stop]")
    assert explained["--steps"].endswith("[whole number]"), "it must be given"
    assert explained["--save_async"].endswith("[true | false; default true]")
    assert explained["--threads"].endswith("[whole number; default none]")
    assert explained["--ds.optimizer.params.eps"].endswith("[number; default 1e-08]")
    assert explained["--data.valid"].endswith("[text; default none]")
    assert all(text.endswith("]") for text in explained.values())


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "command",
    [["train", "--explain"], ["plan", "RECIPE"], ["inspect", "batch", "RECIPE"], ["status", "."], ["plan", "nowhere\u2192.yaml"]],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_command_can_print_whatever_the_locale(project, tmp_path, command, encoding):
    words = [str(project.recipe) if word == "RECIPE" else word for word in command]
    words += ["--ds-config", str(project.ds)] if "RECIPE" in command else []
    words += ["--out", str(tmp_path / "x.png")] if "inspect" in command else []

    done = subprocess.run(
        [sys.executable, "-m", "pretrain", *words],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert done.returncode == (2 if "nowhere\u2192.yaml" in command else 0)


@pytest.mark.parametrize(
    "stale, command, complaint",
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, ["plan", "nosuch"], "nosuch"),
        ({"RANK": "abc"}, ["plan", "nosuch"], "nosuch"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ["export", "nosuch", "--to", "x"], "nosuch"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, ["train", "ul2_tiny", "--run-dir", "RUN"], "rank 5 of 2 processes"),
        ({"RANK": "abc", "WORLD_SIZE": "2"}, ["train", "ul2_tiny", "--run-dir", "RUN"], "RANK is 'abc', not a number"),
        (
            {"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "x"},
            ["train", "ul2_tiny", "--run-dir", "RUN", "--steps", "abc"],
            '"steps"',
        ),
        ({}, ["train", "ul2_tiny", "--run-dir", "x" * 300], "File name too long"),
        ({}, ["status", "x" * 300], "File name too long"),
    ],
)
def test_a_mistake_is_told_whatever_launchers_left_behind(tmp_path, stale, command, complaint):
    words = [word.replace("RUN", str(tmp_path / "run")) for word in command]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", *words], env={**os.environ, **stale}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and complaint in done.stderr, done.stderr
    assert time.monotonic() - started < 25
