"""What training a tokenizer says of itself."""

from pretrain import progress
from tokenizer import train


def test_it_says_how_much_it_has_read_and_when_it_begins_to_learn(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    monkeypatch.setattr(progress._Shown, "on", True)
    (tmp_path / "a.txt").write_text("aé")
    assert list(train._counted(["aé", "b"], [tmp_path / "a.txt"], 600)) == ["aé", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["reading", "reading"] and lines[-1].startswith("2 documents read")
    assert "600 pieces" in lines[-1]
