"""One training step, in its order: Megatron-Core's schedule over the chunks, an optimizer behind it."""

from pretrain.engine.engine import Engine, build_engine

__all__ = ["Engine", "build_engine"]
