"""Files as people write them: an own recipe, sizes that follow, and what makes a file unreadable."""

import json
import shutil
import time

import pytest

from pretrain.config import read_run
from pretrain.config.read import DS_CONFIGS
from pretrain.errors import UserError
from tests.support.project import DS


@pytest.fixture
def own(project, tmp_path):
    """A recipe of one's own, without a JSON."""
    shutil.copy(project.recipe, tmp_path / "mine.yaml")
    return tmp_path / "mine.yaml"


def with_json(own, **changes) -> str:
    own.with_suffix(".json").write_text(json.dumps({**DS, **changes}))
    return str(own)


def test_the_json_beside_an_own_recipe_is_taken(own):
    with pytest.raises(UserError) as told:
        read_run(str(own), [])
    assert f"neither {own.with_suffix('.json')} nor {DS_CONFIGS}/mine.json is there" in str(told.value)
    assert "name one with --ds-config" in str(told.value)
    assert read_run(with_json(own), []).ds_file == str(own.with_suffix(".json"))


@pytest.mark.parametrize(
    "sizes, ranks, found",
    [
        (("auto", 2, 3), 1, (6, 2, 3)),
        (("auto", 2, 3), 4, (24, 2, 3)),
        ((24, "auto", 3), 4, (24, 2, 3)),
        ((24, 2, "auto"), 4, (24, 2, 3)),
    ],
)
def test_a_size_of_the_batch_that_is_auto_follows_from_the_others(own, sizes, ranks, found):
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    block = {**DS["progressive_subnetwork"], "paths_per_step": 1}
    run = read_run(with_json(own, **dict(zip(names, sizes)), progressive_subnetwork=block), [], None, ranks)
    assert (run.batch, run.micro_batch, run.micro_batches) == found


@pytest.mark.parametrize("sizes", [("auto", "auto", "auto"), ("auto", 2, "auto"), (24, "auto", "auto"), (25, "auto", 3)])
def test_a_size_that_nothing_decides_is_named(own, sizes):
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    with pytest.raises(UserError, match='_size.*" is "auto", and "train_.*do not decide it; write a number'):
        read_run(with_json(own, **dict(zip(names, sizes))), [])


@pytest.mark.parametrize(
    "change", [{"fp16": {"enabled": False}}, {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}}}]
)
def test_what_asks_for_nothing_may_stand(own, change):
    read_run(with_json(own, **change), [])


@pytest.mark.parametrize(
    "change", [{"fp16": {"enabled": True}}, {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}]
)
def test_what_asks_for_something_that_is_not_done_is_refused(own, change):
    with pytest.raises(UserError, match="not supported"):
        read_run(with_json(own, **change), [])


@pytest.mark.parametrize("key", ["train_batch_sise", "zero_optimisation", "gradient_clip"])
@pytest.mark.parametrize("value", [None, False, {"enabled": False}, 0])
def test_a_misspelt_key_is_never_taken_for_one_that_asks_for_nothing(own, key, value):
    with pytest.raises(UserError, match=f'unknown key "{key}"'):
        read_run(with_json(own, **{key: value}), [])


def test_a_mark_at_the_beginning_that_some_editors_write_is_nothing(own):
    with_json(own)
    for file in (own, own.with_suffix(".json")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    read_run(str(own), [])


def test_a_number_of_thousands_of_digits_is_named_as_such(own):
    with_json(own)
    file = own.with_suffix(".json")
    file.write_text(file.read_text().replace('"train_batch_size": 8', '"train_batch_size": ' + "8" * 5000))
    with pytest.raises(UserError, match=r"a number of 5000 digits, 888888888888\.\.\.; no setting is that large"):
        read_run(str(own), [])


def test_a_very_long_file_of_unknown_keys_is_refused_in_seconds(own):
    with_json(own, **{f"key_{number}": number for number in range(200_000)})
    began = time.monotonic()
    with pytest.raises(UserError, match='unknown key "key_0"'):
        read_run(str(own), [])
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("key", ["hidden_size", "ffn_hidden_size", "vocab_size", "num_attention_heads", "padded_vocab_size"])
def test_a_width_that_no_machine_has_is_refused(project, key):
    with pytest.raises(UserError, match=f'key "model.{key}": input should be less than or equal to 16777216'):
        project.run(f"model.{key}=1000000000000")
