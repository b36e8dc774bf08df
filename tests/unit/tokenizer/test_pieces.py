"""Text to tokens: reserved pieces, lossless text, files that are whole or not there."""

import json
import subprocess
import sys

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from pretrain.errors import UserError
from tokenizer import load_tokenizer
from tokenizer.encode import encode
from tokenizer.pieces import EOS, MODES, PAD, sentinel
from tokenizer.sentence_pieces import PART_CHARACTERS, parts_of
from tokenizer.train import train


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(home / "tokenizer")


def test_reserved_pieces_are_there(tokenizer):
    ids = [tokenizer.id(piece) for piece in (PAD, EOS, *MODES, sentinel(0), sentinel(99))]
    assert len(set(ids)) == len(ids) and max(ids) < 120
    with pytest.raises(UserError, match='no piece "<extra_id_100>"'):
        tokenizer.id(sentinel(100))


def test_text_that_spells_a_reserved_piece_stays_text(tokenizer):
    spelt = "[NLU] <extra_id_0> </s>"
    ids = tokenizer.processor.encode(spelt)
    assert not {tokenizer.id(piece) for piece in (*MODES, sentinel(0), EOS)} & set(ids)
    assert tokenizer.processor.decode(ids) == spelt


@pytest.mark.parametrize("text", ["def f(x):\n    return  x\n", "Grüße, 世界 🙂", "a\tb\r\n"])
def test_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer.processor.encode(text)
    assert tokenizer.processor.decode(ids) == text
    assert tokenizer.text(ids) == " " + text, "sentencepiece puts a space before every text"
    assert b"".join(tokenizer.piece_bytes[token] for token in ids) == (" " + text).encode()
    assert tokenizer.text([tokenizer.id(EOS), tokenizer.id(sentinel(3))]) == ""


def test_token_files_hold_the_documents_in_order(home, tokenizer):
    dataset = IndexedDataset(str(home / "train"))
    texts = [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]
    assert len(dataset.document_indices) - 1 == len(texts)
    for index in (0, 7, len(texts) - 1):
        assert tokenizer.processor.decode(dataset[index].tolist()) == texts[index]
    manifest = json.loads((home / "train.json").read_text())
    assert manifest["tokens"] == int(np.sum(dataset.sequence_lengths)) and manifest["documents"] == len(texts)


def test_a_bad_line_leaves_no_file(home, tokenizer, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(UserError, match="x.jsonl: line 2: not JSON with a"):
        encode(str(tmp_path / "x.jsonl"), tokenizer, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parts", "x.jsonl"], "finished blocks alone"


@pytest.mark.parametrize(
    "text", ["a b", " a  b ", "one two, three\nfour five\n\n  six 世界 seven🙂 eight ", "word", "   ", "x y" * 50]
)
@pytest.mark.parametrize("characters", [1, 3, 10])
def test_parts_of_a_text_are_encoded_as_the_whole(tokenizer, text, characters):
    ids = [list(tokenizer.processor.encode(part)) for part in parts_of(text, characters)]
    assert sum(ids, []) == tokenizer.processor.encode(text)
    assert "".join(part + " " for part in parts_of(text, characters)) == text + " "
    assert all(ids) and (len(ids) > 1 or " " not in text.strip() or characters > len(text) / 2)


def test_long_texts_are_encoded_in_parts(tokenizer, home):
    """Equal scores may be broken otherwise, since sentencepiece sums them in single precision; more than equal they are not."""
    own = [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]
    texts = ["short", " ".join(own)[: 3 * PART_CHARACTERS], "", "x" * 2 * PART_CHARACTERS]
    assert [len(parts_of(text)) for text in texts] == [1, 3, 1, 1]
    scores = np.array([tokenizer.processor.get_score(i) for i in range(tokenizer.vocab_size)])
    for text, ids in zip(texts, tokenizer.encode(texts)):
        whole = np.array(tokenizer.processor.encode(text), dtype=int)
        assert tokenizer.processor.decode(ids.tolist()) == text and ids.dtype == np.int32
        assert scores[ids.astype(int)].sum() >= scores[whole].sum() - 1e-6 * abs(scores[whole].sum())


def test_training_passes_over_what_cannot_be_read(home, tmp_path):
    (tmp_path / "x.jsonl").write_text((home / "valid.jsonl").read_text() + "{}\n" + (home / "valid.jsonl").read_text())
    with pytest.raises(UserError, match="x.jsonl: line 11: not JSON.*--on-error skip"):
        train(str(tmp_path / "x.jsonl"), 500, tmp_path / "t")
    assert not (tmp_path / "t").exists()
    manifest = train(str(tmp_path / "x.jsonl"), 500, tmp_path / "t", on_error="skip")
    assert len(manifest["bad_documents"]) == 1 and "line 11" in manifest["bad_documents"][0]


def test_training_fails_clearly_and_leaves_nothing(home, tmp_path):
    with pytest.raises(UserError, match="--vocab-size 1000000: sentencepiece"):
        train(str(home / "valid.jsonl"), 1_000_000, tmp_path / "t", model_type="unigram")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="exists; remove it"):
        train(str(home / "valid.jsonl"), 600, home / "tokenizer")
    with pytest.raises(UserError, match="no such file"):
        train(str(home / "nothing*.jsonl"), 600, tmp_path / "t")


def test_the_command_line(home, tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "tokenizer", *words], capture_output=True, text=True, timeout=120)

    text, out = str(home / "valid.jsonl"), str(tmp_path / "tokenizer")
    assert run("train", "--input", text, "--vocab-size", "500", "--out", out, "--model-type", "bpe").returncode == 0
    done = run("encode", "--input", text, "--tokenizer", out, "--out", str(tmp_path / "x"))
    assert done.returncode == 0 and "10 documents" in done.stdout and done.stderr == ""
    failed = run("encode", "--input", text, "--tokenizer", str(tmp_path / "none"), "--out", str(tmp_path / "y"))
    assert failed.returncode != 0 and failed.stderr.startswith("error: ") and "no tokenizer here" in failed.stderr
