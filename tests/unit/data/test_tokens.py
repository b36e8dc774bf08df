"""Missing, truncated and foreign files: found before training, named, with the mend."""

import json
import shutil

import pytest

from pretrain.data.loader import open_data
from pretrain.errors import UserError


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
