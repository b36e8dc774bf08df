"""Saving beside the training: what the loop waits for, and what it hears."""

import threading
import time

import pytest

from pretrain.checkpoint import saver as module
from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.manifest import problem_of
from pretrain.config.run import Position
from pretrain.errors import TrainingStopped


@pytest.fixture
def slow(monkeypatch):
    """A disk that waits to be let go."""
    gate, write, running = threading.Event(), module._write, []

    def wait(*words):
        running.append(1)
        assert len(running) == 1, "two saves overlap"
        gate.wait(10)
        try:
            return write(*words)
        finally:
            running.pop()

    monkeypatch.setattr(module, "_write", wait)
    return gate


def test_the_loop_goes_on_while_a_checkpoint_is_written(saved, slow, tmp_path):
    directory = RunDirectory(tmp_path)
    with saved.saver(directory) as saver:
        started = time.monotonic()
        saver.begin(Position(4, 32), 0.0)
        for _ in range(5):
            saver.check()
        assert time.monotonic() - started < 2 and not directory.steps_saved()
        slow.set()
    assert [problem_of(folder) for folder in directory.steps_saved()] == [None]


def test_what_changes_after_the_copy_is_not_in_the_checkpoint(saved, slow, tmp_path):
    from tests.support.plain_reader import read_parameter

    name, weight = next(iter(saved.weights().items()))
    with saved.saver(RunDirectory(tmp_path)) as saver:
        saver.begin(Position(4, 32), 0.0)
        master = next(placed.shard.numbers("weight") for placed in saver.state.kept if placed.shard.name == name)
        former = master.clone()
        master.add_(1.0)
        slow.set()
        saver.finish()
        master.copy_(former)
    assert abs(read_parameter(RunDirectory(tmp_path).checkpoint(4), name) - weight.numpy()).max() == 0


def test_a_second_save_waits_for_the_first_and_says_so(saved, slow, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.1)
    directory = RunDirectory(tmp_path)
    with saved.saver(directory) as saver:
        saver.begin(Position(4, 32), 0.0)
        threading.Timer(0.5, slow.set).start()
        saver.begin(Position(5, 40), 0.0)
    assert "WARNING: training waits for checkpoint" in capsys.readouterr().out
    assert [problem_of(folder) for folder in directory.steps_saved()] == [None, None]


def test_a_failure_in_the_writer_is_raised_at_the_next_step(saved, tmp_path, monkeypatch):
    def fail(*words):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "write_tensors", fail)
    saver = saved.saver(RunDirectory(tmp_path))
    saver.begin(Position(4, 32), 0.0)
    with pytest.raises(TrainingStopped, match="could not be completed .*Input/output error"):
        while True:
            saver.check()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_disk_without_room_is_noticed_before_it_is_filled(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    saver = saved.saver(RunDirectory(tmp_path))
    saver.begin(Position(4, 32), 0.0)
    with pytest.raises(TrainingStopped, match="No space left on device"):
        saver.finish()
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))
