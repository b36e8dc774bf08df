"""Checksums of token files: what they notice, and what they cost."""

import os
import time

import numpy as np
import pytest

from pretrain.data import identity
from pretrain.data.identity import checksum
from pretrain.errors import UserError


def files(prefix, tokens: int, index: int) -> None:
    """Sparse files of so many bytes: reading is as fast as it gets."""
    for end, size in ((".bin", tokens), (".idx", index)):
        with prefix.with_name(prefix.name + end).open("wb") as file:
            file.truncate(size)


def test_a_terabyte_takes_less_than_two_seconds(tmp_path):
    files(tmp_path / "large", 10**12, 10**10)
    began = time.monotonic()
    checksum(tmp_path / "large")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("whole", [2**28, 100])
@pytest.mark.parametrize("end, place", [(".bin", 0), (".bin", -1), (".idx", 0), (".idx", -1)])
def test_another_byte_at_either_end_is_noticed(tmp_path, monkeypatch, whole, end, place):
    monkeypatch.setattr(identity, "WHOLE_INDEX", whole)
    prefix = tmp_path / "tokens"
    files(prefix, 10**7, 10**7)
    before = checksum(prefix)
    file = prefix.with_name(prefix.name + end)
    content = np.memmap(file, np.uint8, "r+")
    content[place] = 1
    content.flush()
    os.utime(file, ns=(1, 1))
    assert checksum(prefix) != before


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; token files are made by"):
        checksum(tmp_path / "none")
