"""Floating-point operations of a decoder, a token and a step: what skipped layers save, and what they cannot save.

Counted are matrix products, two operations a multiply-add, and a backward pass of twice the forward; norms and
lookups once an element, which is next to nothing. Attention counts the full [s, s] product: packed documents and
prefixes make the mask irregular, and a dense kernel computes it all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pretrain.subnetwork.methods import Method
from pretrain.subnetwork.path import LayerPath
from pretrain.subnetwork.schedule import Stage

TRAINING = 3
"""Forward and backward together, in forwards."""


@dataclass(frozen=True)
class Shape:
    """The sizes that decide the cost of a model."""

    layers: int
    hidden: int
    ffn: int
    sequence: int
    vocab: int
    """Padded. The loss leaves padding rows out, which are some thousandths of the projection; they count all the same."""
    gated: bool = True
    """SwiGLU has three matrices in the feed-forward block, a plain one two."""
    transform: bool = False
    """BERT's head has a matrix before the output projection."""
    queries: int | None = None
    """Width of the queries of all heads; hidden if None."""
    keys: int | None = None
    """Width of the keys of all heads, and of the values; as queries if None."""
    targets: float = 1.0
    """Share of the positions that are targets: head and projection run at these alone."""

    def layer(self) -> int:
        """Forward operations a token in one transformer layer."""
        norms = 2 * 4 * self.hidden
        return 2 * self.layer_weights() + self.attention() + norms

    def part_of_layer(self, groups: float, columns: float) -> float:
        """Operations of a layer of which shares of the groups of heads and of the feed-forward columns run, over those of all."""
        feed_forward = 2 * (3 if self.gated else 2) * self.hidden * self.ffn
        heads = 2 * self.layer_weights() - feed_forward + self.attention()
        return 1 - ((1 - groups) * heads + (1 - columns) * feed_forward) / self.layer()

    def shares(self, path: LayerPath) -> tuple[float, ...]:
        """Operations of each layer in a path, over those of the whole layer."""
        if path.width is None:
            return tuple(float(active) for active in path.active)
        return tuple(self.part_of_layer(*width.shares) * active for active, width in zip(path.active, path.width))

    def layers_of(self, path: LayerPath) -> float:
        """Operations of a path's layers, in whole layers."""
        return sum(self.shares(path))

    def layer_weights(self) -> int:
        """Weights in the matrices of one layer."""
        queries = self.queries or self.hidden
        return 2 * self.hidden * (queries + (self.keys or queries)) + (3 if self.gated else 2) * self.hidden * self.ffn

    def attention(self) -> int:
        """Forward operations a token between queries, keys and values of one layer."""
        return 2 * 2 * self.sequence * (self.queries or self.hidden)

    def outside(self) -> float:
        """Forward operations a token outside the layers: embedding, final norm, and at targets head and output projection."""
        head = 2 * self.hidden**2 if self.transform else 0
        return self.hidden + 4 * self.hidden + self.targets * (head + 2 * self.hidden * self.vocab)

    def training(self, active: float, tokens: int = 1) -> float:
        """Training operations of `tokens` tokens through `active` layers: those of a step with the tokens of a global batch."""
        return TRAINING * (active * self.layer() + self.outside()) * tokens


def ideal_ratio(shape: Shape, active: float) -> float:
    """Ideal step time with `active` layers over that with all, in one process: the ratio of model FLOPs."""
    return shape.training(active) / shape.training(shape.layers)


def expected_active(method: Method, stage: Stage) -> Fraction:
    """Expected number of active layers in a step of `stage`, mean over its steps."""
    return sum(method.keep(stage.first_step, stage.last_step), Fraction(0))


def expected_cost(method: Method, stage: Stage, shape: Shape) -> Fraction:
    """Expected operations of the layers in a step of `stage`, in whole layers."""
    width = method.width(stage.first_step, stage.last_step)
    part = Fraction(1) if width == (1.0, 1.0) else Fraction(shape.part_of_layer(*width))
    return expected_active(method, stage) * part


@dataclass(frozen=True)
class Savings:
    """What a method saves over a whole run against all layers in every step."""

    layer_flops: Fraction
    """Share of the layers' operations that runs, 3/4 for the paper's 6-8-10-12."""
    model_flops: float
    """Share of the model's operations that runs: the ideal step time of the run on one process."""

    @property
    def layer_factor(self) -> float:
        """How many times fewer layer operations, 1.33 for the paper's 6-8-10-12."""
        return float(1 / self.layer_flops)

    @property
    def model_factor(self) -> float:
        return 1 / self.model_flops


def savings(method: Method, shape: Shape, stages: Sequence[Stage] | None = None) -> Savings:
    """Expected savings over `stages`, all of the method's by default."""
    stages = method.stages if stages is None else stages
    steps = sum(stage.steps for stage in stages)
    mean = sum(expected_cost(method, stage, shape) * stage.steps for stage in stages) / steps
    return Savings(Fraction(mean) / shape.layers, ideal_ratio(shape, float(mean)))
