"""Missing, truncated and foreign files: found before training, named, with the mend."""

import hashlib
import json
import shutil
import struct

import numpy as np
import pytest

from pretrain.data.loader import open_data
from pretrain.data.tokens import contradiction
from pretrain.errors import UserError
from tokenizer.encode import encode
from tokenizer.load import load_tokenizer


def error_of(project, tmp_path, *settings: str, spoil=lambda home: None) -> str:
    """The complaint about a copy of the data that `spoil` has had its hands on."""
    home = tmp_path / "copy"
    shutil.copytree(project.home, home)
    spoil(home)
    copied = [f"data.{key}={home / key}" for key in ("tokenizer", "train", "valid")]
    with pytest.raises(UserError) as caught:
        open_data(project.run(*copied, *settings)).close()
    return str(caught.value)


def shorten(name: str, by: int):
    def spoil(home):
        content = (home / name).read_bytes()
        (home / name).write_bytes(content[:-by])

    return spoil


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "valid.bin", "valid.idx"])
def test_a_missing_file_is_named_with_the_command_that_makes_it(project, tmp_path, name):
    complaint = error_of(project, tmp_path, spoil=lambda home: (home / name).unlink())
    assert f"{name}: no such file; make it with python -m tokenizer encode" in complaint


@pytest.mark.parametrize("name, by", [("train.bin", 1), ("train.bin", 1000), ("train.idx", 3), ("train.idx", 60)])
def test_a_truncated_file_is_named(project, tmp_path, name, by):
    complaint = error_of(project, tmp_path, spoil=shorten(name, by))
    assert str(tmp_path / "copy" / "train") in complaint and "encode again" in complaint


def test_an_empty_index_is_named(project, tmp_path):
    assert "train.idx: damaged, truncated" in error_of(
        project, tmp_path, spoil=lambda home: (home / "train.idx").write_bytes(b"")
    )


def test_a_vocabulary_that_does_not_match_the_tokenizer(project, tmp_path):
    complaint = error_of(project, tmp_path, "model.vocab_size=599")
    assert "model.vocab_size 599 does not match the 600 pieces" in complaint and "set model.vocab_size to 600" in complaint


def test_token_files_of_another_tokenizer(project, tmp_path):
    def spoil(home):
        manifest = json.loads((home / "train.json").read_text())
        (home / "train.json").write_text(json.dumps({**manifest, "tokenizer_sha256": "0" * 64}))

    assert "train.json: written with another tokenizer" in error_of(project, tmp_path, spoil=spoil)


def test_a_missing_and_a_replaced_tokenizer(project, tmp_path):
    complaint = error_of(project, tmp_path, spoil=lambda home: shutil.rmtree(home / "tokenizer"))
    assert "no tokenizer here" in complaint and "python -m tokenizer train" in complaint
    shutil.rmtree(tmp_path / "copy")
    assert "not the model that" in error_of(project, tmp_path, spoil=shorten("tokenizer/tokenizer.model", 5))


def test_too_little_text(project, tmp_path):
    assert "are too few for samples of" in error_of(project, tmp_path, "data.sequence_length=200000")


def edit_index(name: str, change):
    """Change the parts of an index in place: header (as bytes), lengths, pointers, documents."""

    def spoil(home):
        file = home / f"{name}.idx"
        content = bytearray(file.read_bytes())
        sequences, documents = struct.unpack_from("<QQ", content, 18)
        lengths = np.frombuffer(content, np.int32, sequences, 34)
        pointers = np.frombuffer(content, np.int64, sequences, 34 + 4 * sequences)
        change(content, lengths, pointers, np.frombuffer(content, np.int64, documents, 34 + 12 * sequences))
        file.write_bytes(content)

    return spoil


def swap_lengths(content, lengths, pointers, documents):
    lengths[0], lengths[1] = lengths[1] + 1, lengths[0] - 1


@pytest.mark.parametrize("name", ["train", "valid"])
@pytest.mark.parametrize(
    "change, words",
    [
        (swap_lengths, "sequence 0 does not end where the next one begins"),
        (lambda content, lengths, pointers, documents: lengths.__setitem__(1, -5), "sequence 1 has -5 tokens"),
        (lambda content, lengths, pointers, documents: pointers.__setitem__(0, 4), "its first sequence begins at byte 4"),
        (lambda content, lengths, pointers, documents: documents.__setitem__(2, 0), "its documents are not in order"),
        (lambda content, lengths, pointers, documents: documents.__setitem__(-1, 1), "its documents do not hold its"),
        (lambda content, lengths, pointers, documents: content.__setitem__(17, 99), "does not know (99)"),
        (lambda content, lengths, pointers, documents: content.__setitem__(17, 7), "its tokens are floating-point numbers"),
    ],
)
def test_an_index_that_contradicts_itself_is_named(project, tmp_path, name, change, words):
    complaint = error_of(project, tmp_path, spoil=edit_index(name, change))
    assert f"{name}.idx" in complaint and words in complaint and complaint.endswith("encode again")


def test_of_a_large_index_stretches_are_looked_at():
    count = 2**23
    lengths, pointers = np.full(count, 3, np.int32), np.arange(count, dtype=np.int64) * 6
    documents = np.arange(count + 1, dtype=np.int64)
    assert contradiction(lengths, pointers, documents, 2) is None
    lengths[-1], pointers[-1] = 5, 0
    assert "does not end where the next one begins" in contradiction(lengths, pointers, documents, 2)


def test_a_tokenizer_model_of_other_bytes_is_named(project, tmp_path):
    def spoil(home):
        (home / "tokenizer" / "tokenizer.model").write_bytes(b"not a model of anything")
        manifest = json.loads((home / "tokenizer" / "tokenizer.json").read_text())
        manifest["model_sha256"] = hashlib.sha256(b"not a model of anything").hexdigest()
        (home / "tokenizer" / "tokenizer.json").write_text(json.dumps(manifest))

    assert "tokenizer.model: not a model of sentencepiece" in error_of(project, tmp_path, spoil=spoil)


@pytest.mark.parametrize("name, what", [("valid", "held-out text"), ("train", "text to train on")])
def test_documents_that_are_too_short_for_a_target_are_named_before_training(project, tmp_path, name, what):
    def spoil(home):
        for end in (".bin", ".idx", ".json"):
            (home / f"{name}{end}").unlink()
        (home / "short.txt").write_text("a\n" * 20_000)
        encode(str(home / "short.txt"), load_tokenizer(home / "tokenizer"), home / name)

    complaint = error_of(project, tmp_path, spoil=spoil)
    assert f"the {what} in " in complaint and "has no token to predict" in complaint
