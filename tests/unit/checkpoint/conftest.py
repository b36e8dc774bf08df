"""A checkpoint of one process after three steps, and what it was made from."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.saver import Saver
from pretrain.config import Run
from pretrain.config.run import Position
from pretrain.data.loader import open_data
from pretrain.engine import Engine, build_engine

STEPS = 3


@dataclass
class Saved:
    run: Run
    engine: Engine
    directory: RunDirectory
    data: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.directory.checkpoint(STEPS)

    def saver(self, directory: RunDirectory | None = None, engine: Engine | None = None) -> Saver:
        """A saver of the same run, by default into the same directory with the same engine."""
        engine = engine or self.engine
        return Saver(self.run, engine.optimizer, engine.ranks, directory or self.directory, self.data)

    def weights(self) -> dict[str, torch.Tensor]:
        self.engine.optimizer.settle()
        return {name: parameter.detach().clone() for name, parameter in self.engine.model.named_parameters()}


@pytest.fixture(scope="module")
def saved(project, ranks, tmp_path_factory) -> Saved:
    run = project.run()
    engine, data, directory = build_engine(run, ranks), open_data(run), RunDirectory(tmp_path_factory.mktemp("saved") / "run")
    for step in range(1, STEPS + 1):
        result = engine.step(step, data.batch(step), run.method.paths(step))
    data.close()
    with Saver(run, engine.optimizer, ranks, directory, data.checksums()) as saver:
        saver.begin(run.position(Position(), STEPS), result.lr)
    return Saved(run, engine, directory, data.checksums())
