"""The quick start's text: made once, from what is installed, with everything that training needs."""

import json

import pytest

from pretrain.data import installed_docs as machine
from pretrain.data.tokens import open_tokens
from pretrain.errors import UserError
from tokenizer import load_tokenizer


def test_text_tokenizer_and_tokens_are_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "ENOUGH_BYTES", 400_000)
    made = machine.machine_data(600)
    assert "Reading this machine's documentation" in capsys.readouterr().out
    tokenizer = load_tokenizer(made.tokenizer)
    assert tokenizer.vocab_size == 600
    sizes = [len(open_tokens(prefix, 600, tokenizer.sha256)) for prefix in (made.train, made.valid)]
    assert sizes[0] > 20 * sizes[1] > 0
    texts = [
        json.loads(line)["text"] for name in ("train", "valid") for line in (tmp_path / "machine-600-2" / f"{name}.jsonl").open()
    ]
    assert len(set(texts)) == len(texts) and 350_000 < sum(map(len, texts)) < 600_000
    assert machine.machine_data(600) == made
    assert capsys.readouterr().out == "", "the second time there is nothing to do"


def test_docstrings_are_read_without_importing(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""Of the module."""\nraise SystemExit\nclass A:\n    """Of a class."""\n    def f(self):\n        """Of a method."""\n'
    )
    assert machine._docstrings(module) == ["Of the module.", "Of a class.", "Of a method."]
    module.write_text("def broken(:\n")
    assert machine._docstrings(module) == []


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set PRETRAIN_CACHE to a folder that can"):
        machine.machine_data(600)
