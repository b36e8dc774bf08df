"""What is written can be read by anyone, is checked to the last byte, and is never run."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pretrain.checkpoint.manifest import MANIFEST, Manifest, problem_of, read_manifest
from pretrain.checkpoint.resume import resume
from pretrain.engine import build_engine
from pretrain.errors import UserError
from pretrain.files import sha256
from pretrain.optim.names import TENSORS
from tests.support.plain_reader import read_parameter
from tests.unit.checkpoint.conftest import STEPS


def test_a_stranger_reads_it_from_the_description(saved):
    for name, weight in saved.weights().items():
        assert np.array_equal(read_parameter(saved.folder, name), weight.numpy()), name


def test_the_safetensors_library_opens_every_file(saved):
    manifest = read_manifest(saved.folder)
    for name, facts in manifest.files.items():
        with safe_open(saved.folder / name, framework="numpy") as file:
            assert set(file.keys()) == {f"{kind}/{parameter}" for kind in TENSORS for parameter in facts.fragments}


def test_the_manifest_says_where_the_run_stands(saved):
    manifest = read_manifest(saved.folder)
    assert (manifest.step, manifest.samples) == (STEPS, STEPS * saved.run.batch)
    assert manifest.recipe["seed"] == saved.run.recipe.seed and manifest.ds_config["progressive_subnetwork"]["method"] == "raptr"
    assert manifest.layout == saved.run.layout() and any(line.startswith("torch ") for line in manifest.versions)
    assert manifest.parameters == {name: tuple(weight.shape) for name, weight in saved.weights().items()}


def test_weights_moments_and_the_count_of_updates_come_back(saved, ranks):
    engine = build_engine(saved.run, ranks)
    position = resume(saved.run, saved.saver(engine=engine))
    assert (position.step, position.samples) == (STEPS, STEPS * saved.run.batch)
    theirs = saved.weights()
    engine.optimizer.settle()
    assert all(torch.equal(ours, theirs[name]) for name, ours in engine.model.named_parameters())
    for ours, theirs in zip(engine.optimizer.shards(), saved.engine.optimizer.shards()):
        for kind in TENSORS:
            assert torch.equal(ours.numbers(kind), theirs.numbers(kind)) and ours.numbers(kind).abs().max() > 0
        assert engine.optimizer.adamw.state[ours.tensors()["weight"]]["step"] == STEPS


@pytest.fixture
def copied(saved, tmp_path):
    folder = tmp_path / saved.folder.name
    shutil.copytree(saved.folder, folder)
    return folder


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def flip_a_byte(folder: Path) -> None:
    content = bytearray(only_file(folder).read_bytes())
    content[len(content) // 2] ^= 1
    only_file(folder).write_bytes(content)


def edit(folder: Path, change) -> None:
    """Change the manifest; where it is still one, its checksum agrees, as someone would see to who forges a checkpoint."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    try:
        manifest["sha256"] = Manifest.model_validate(manifest).sealed().sha256
    except ValueError:
        pass
    (folder / MANIFEST).write_text(json.dumps(manifest))


def agree(folder: Path) -> None:
    """Have the manifest agree with the files, as someone would who forges a checkpoint."""
    file = only_file(folder)
    edit(folder, lambda m: m["files"][file.name].update(bytes=file.stat().st_size, sha256=sha256(file)))


def fragment(folder: Path, numbers: list[int]) -> None:
    edit(folder, lambda m: m["files"]["rank_00000.safetensors"]["fragments"].update({"decoder.final_layernorm.weight": numbers}))


def rename_file(manifest: dict) -> None:
    (name,) = manifest["files"]
    manifest["files"]["../" + name] = manifest["files"].pop(name)


@pytest.mark.parametrize(
    "harm, complaint",
    [
        (flip_a_byte, "rank_00000.safetensors is not what was written (checksum)"),
        (lambda folder: os.truncate(only_file(folder), 1000), "rank_00000.safetensors has 1000 bytes instead of"),
        (lambda folder: only_file(folder).unlink(), "rank_00000.safetensors is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda folder: os.truncate(folder / MANIFEST, 100), "manifest.json cannot be read"),
        (
            lambda folder: edit(folder, lambda m: m.pop("samples")),
            "manifest.json is not a checkpoint's (samples: Field required)",
        ),
        (
            lambda folder: edit(folder, lambda m: m.update(format=9)),
            "manifest.json is not a checkpoint's (format 9; this program reads 1)",
        ),
        (lambda folder: edit(folder, lambda m: m.update(step=4)), "it is of step 4"),
        (
            lambda folder: fragment(folder, [1, 0, 32, 16, 16]),
            "the fragments of decoder.final_layernorm.weight do not cover it exactly once",
        ),
        (
            lambda folder: fragment(folder, [2, 0, 16, 0, 32]),
            "the fragments of decoder.final_layernorm.weight do not cover it exactly once",
        ),
        (lambda folder: fragment(folder, [1, 0, 32, 0, 2**40]), "is too small for its fragments"),
        (
            lambda folder: edit(folder, lambda m: m["parameters"].update(more=[2**50])),
            "the fragments of more do not cover it exactly once",
        ),
        (lambda folder: edit(folder, rename_file), "'../rank_00000.safetensors' is not the name of a file in the checkpoint"),
    ],
)
def test_damage_is_found_and_named(copied, harm, complaint):
    assert problem_of(copied) is None
    harm(copied)
    assert complaint in problem_of(copied)


def test_no_flipped_bit_of_the_manifest_passes(copied):
    content = (copied / MANIFEST).read_bytes()
    whole = json.loads(content)
    for bit in random.Random(0).sample(range(8 * len(content)), 300):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (copied / MANIFEST).write_bytes(flipped)
        try:
            same = json.loads(flipped) == whole
        except ValueError:
            same = False
        assert same or problem_of(copied) is not None, bit


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_planted_pickle_is_not_executed(saved, copied, ranks, tmp_path):
    mark = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.is_dir(), "the plant works"
    mark.rmdir()
    size = only_file(copied).stat().st_size
    for name in (only_file(copied).name, "state.pt", ".metadata"):
        (copied / name).write_bytes(pickle.dumps(Planted(mark)).ljust(size, b"\0"))
    agree(copied)
    assert problem_of(copied) is None, "to the checksums it is a good checkpoint"
    with pytest.raises(UserError, match="not a safetensors file"):
        resume(saved.run, saved.saver(engine=build_engine(saved.run, ranks)), str(copied))
    assert not mark.exists()


def shorten(folder: Path, places) -> None:
    """Have the header of the file say something else."""
    content = only_file(folder).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    places(header)
    text = json.dumps(header).encode()
    only_file(folder).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    agree(folder)


@pytest.mark.parametrize(
    "harm, complaint",
    [
        (
            lambda f: shorten(f, lambda h: h.pop("exp_avg/decoder.final_layernorm.weight")),
            "has not the length that the manifest gives",
        ),
        (
            lambda f: shorten(f, lambda h: h["exp_avg/decoder.final_layernorm.weight"].update(data_offsets=[0, 2**40])),
            "is not where the header says",
        ),
        (
            lambda f: edit(f, lambda m: m["recipe"]["model"].update(num_layers=7)),
            "holds another run: recipe.model.num_layers is 7 there, 8 here",
        ),
        (lambda f: edit(f, lambda m: m.update(tokenizer_sha256="0" * 64)), "its data was made with another tokenizer"),
        (lambda f: edit(f, lambda m: m["recipe"].update(stepz=3)), 'its recipe: unknown key "stepz"'),
    ],
)
def test_a_checkpoint_that_lies_is_refused_with_the_reason(saved, copied, ranks, harm, complaint):
    harm(copied)
    assert problem_of(copied) is None
    with pytest.raises(UserError, match=complaint):
        resume(saved.run, saved.saver(engine=build_engine(saved.run, ranks)), str(copied))
