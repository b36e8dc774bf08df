"""Finetuning of an exported BERT learns what labels say, of one text and of pairs."""

import json
import lzma
import random
import subprocess
import sys

import pytest

from tests.support.project import BERT
from tests.support.runs import train

WORDS = "value name list type class module object return string number".split()


@pytest.fixture(scope="module")
def exported(project, tmp_path_factory):
    home = tmp_path_factory.mktemp("bert")
    words = [word for key, value in BERT.items() for word in (f"--{key}", value)]
    assert train(project, home / "run", *words).returncode == 0
    words = [sys.executable, "-m", "pretrain", "export", home / "run", "--to", home / "hf"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home / "hf"


def tables(folder, pairs: bool):
    """Sentences whose label is whether a word is in them; pairs, whether the word is in the second."""
    draw = random.Random(1)
    for name, count in (("train.tsv.xz", 192), ("test.tsv", 60)):
        lines = ["#1 String\t#2 String\tQuality" if pairs else "sentence\tlabel"]
        for _ in range(count):
            label = draw.randrange(2)
            texts = [" ".join(draw.choices(WORDS, k=4)) for _ in range(1 + pairs)]
            texts[-1] += " error" if label else " method"
            lines.append("\t".join([*texts, str(label)]))
        content = ("\ufeff" + "\r\n".join(lines) + "\n").encode()
        (folder / name).write_bytes(lzma.compress(content) if name.endswith(".xz") else content)


def finetune(exported, folder, *words):
    files = ["--train", folder / "train.tsv.xz", "--test", folder / "test.tsv"]
    command = [sys.executable, "-m", "bench.finetune_bert", exported, *files, *words, "--device", "cpu"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("task", [pytest.param("sst2", marks=pytest.mark.long), "mrpc"])
def test_it_learns_what_labels_say(exported, tmp_path, task):
    tables(tmp_path, pairs=task == "mrpc")
    settings = ["--seeds", 2, "--epochs", 5, "--lr", 3e-3, "--out", tmp_path / "out.json"]
    done = finetune(exported, tmp_path, "--task", task, *settings)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert len(runs["pretrained"]) == len(runs["not pretrained"]) == 2 and len(runs["what most say"]) == 1
    for run in runs["pretrained"]:
        assert run["accuracy"] > 0.9 > 0.7 > runs["what most say"][0]["accuracy"] and run["f1"] > 0.85
    assert "±" in done.stdout and "pretrained" in done.stdout


def test_what_cannot_be_is_one_line(exported, tmp_path):
    tables(tmp_path, pairs=False)
    for words, says in (
        (["--task", "mrpc"], 'has no column "#1 String" but sentence, label; name others with --text and --label'),
        (["--text", "sentence", "--label", "x"], 'has no column "x"'),
    ):
        done = finetune(exported, tmp_path, *words)
        assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert "no exported model" in finetune(tmp_path, tmp_path).stderr
    (tmp_path / "test.tsv").write_text("sentence\tlabel\na\t7\n")
    assert 'label "7" is not in' in finetune(exported, tmp_path).stderr
