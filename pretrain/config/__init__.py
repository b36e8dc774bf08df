"""Recipes, DeepSpeed JSON and command line, read strictly, without torch."""

from pretrain.config.read import read_run
from pretrain.config.recipe import Recipe
from pretrain.config.run import Run

__all__ = ["Recipe", "Run", "read_run"]
