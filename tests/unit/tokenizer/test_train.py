"""A tokenizer that takes minutes to learn gives signs of life."""

from tokenizer import train


def test_it_says_how_much_it_has_read_and_when_it_begins_to_learn(monkeypatch, capsys):
    monkeypatch.setattr(train, "SIGN_SECONDS", 0)
    assert list(train._counted(["a" * 500_000, "b" * 700_000], 600)) == ["a" * 500_000, "b" * 700_000]
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["1 documents read, 0 million characters", "2 documents read, 1 million characters"]
    assert told[2].startswith("2 documents read, 1.2 million characters; sentencepiece learns 600 pieces")
