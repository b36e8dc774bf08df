"""How long a step takes on a GPU if arithmetic, memory and launches go at rates that GPUs are known to reach: an estimate, not a
measurement (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009). `plan` takes its MFU from here.

Kernels and bytes of a layer are counted (bench/kernels.py), a test holds them together. Rates are assumed, until `bench.gpu` has
run. What tensor ranks send each other is left out.
"""

from dataclasses import dataclass

from pretrain.config import Run
from pretrain.cost.flops import Shape
from pretrain.cost.loss import positions_in_piece
from pretrain.plan.hardware import Gpu

PRODUCTS, WIDTH = 0.69, 136
"""Matrix products reach this share of peak speed where matrices are wide; hidden / (hidden + WIDTH) of it where they are not:
0.59 at 768, 0.65 at 2304."""
SDPA, FLEX = 0.22, 0.30
"""Attention's share of peak speed: over all pairs with a mask that is added, and over those pairs that `flex` visits."""
VISITED = 0.5
"""Share of the pairs that `flex` visits: what is causal; packs of short examples leave more out. BERT reads all both ways."""
MEMORY = 0.78
"""Share of its data sheet's rate that memory reaches."""
LAUNCH = 6e-6
"""Seconds from one kernel to the next if Python is what they wait for."""
UNSEEN = 0.92
"""Share of the time that an estimate of this kind finds: the rest is gaps, tails of kernels and the end of a step."""

LOGIT_PASSES = 4
"""Times a logit is read or written but for matrix products: its maximum, its exponential, its gradient read and written."""
SUM_BYTES = 10
"""A parameter and micro-batch: a bf16 gradient is read, an fp32 sum read and written."""
UPDATE_BYTES = 34
"""A parameter and step: AdamW reads a gradient twice, for the norm and for itself, reads and writes weight and two moments in
fp32, and writes the weight in bf16."""


@dataclass(frozen=True)
class LayerCount:
    """A layer, forward and backward."""

    hidden: float
    """Bytes a token through memory but for matrix products and attention, a unit of the hidden size, in bf16."""
    ffn: float
    """The same, a unit of the feed-forward size."""
    kernels: int

    def __add__(self, other: "LayerCount") -> "LayerCount":
        return LayerCount(self.hidden + other.hidden, self.ffn + other.ffn, self.kernels + other.kernels)


COUNTS = {
    ("eager", "forward"): LayerCount(127, 14.4, 34),
    ("eager", "backward"): LayerCount(267, 26.5, 58),
    ("compiled", "forward"): LayerCount(30, 6, 11),
    ("compiled", "backward"): LayerCount(50, 10, 19),
    ("compiled, selective", "forward"): LayerCount(28, 6, 10),
    ("compiled, selective", "backward"): LayerCount(65, 12.5, 19),
}
"""From bench/results/kernels.json. Eager selective recomputation is left out: nobody would use it on a GPU."""


@dataclass(frozen=True)
class Roofline:
    """Seconds of one GPU for a step with all layers, if it has its even share of the model and never waits for another."""

    products: float
    attention: float
    memory: float
    """What is between matrix products, in layers."""
    launches: float
    """As much longer as layers take because Python cannot launch faster."""
    loss: float
    """Projection to logits, and what passes over them."""
    sums: float
    update: float

    @property
    def seconds(self) -> float:
        return sum(vars(self).values()) / UNSEEN


def roofline(run: Run, gpu: Gpu) -> Roofline:
    """Estimate a step."""
    recipe, shape, ranks = run.recipe, run.recipe.shape, run.recipe.parallel
    bf16 = run.ds.bf16.enabled
    rate, bandwidth, size = gpu.tflops(bf16) * 1e12, gpu.memory_tbps * 1e12 * MEMORY, 2 if bf16 else 4
    speed = rate * PRODUCTS * shape.hidden / (shape.hidden + WIDTH)
    passes, count = 1 + run.backward_cost, layer_count(run)
    micro = run.micro_batch * recipe.data.sequence_length
    layers = shape.layers / ranks.pipeline
    whole = 1.0 if recipe.data.objective == "mlm" else VISITED
    visited, attends = (1.0, SDPA) if recipe.model.attention == "sdpa" else (whole, FLEX)
    products = passes * (shape.layer() - shape.attention()) / ranks.tensor / speed * micro
    attention = passes * shape.attention() * visited / ranks.tensor / (rate * attends) * micro
    split = ranks.tensor if ranks.sequence else 1
    memory = size / 2 * (count.hidden * shape.hidden / split + count.ffn * shape.ffn / ranks.tensor) / bandwidth * micro
    launches = max(0.0, count.kernels * LAUNCH - products - attention - memory)
    weights = layers * shape.layer_weights() / ranks.tensor + shape.hidden * shape.vocab / ranks.tensor / ranks.pipeline
    replicas = run.data_parallel if run.ds.zero_optimization.stage > 0 else 1
    of_layers = layers * run.micro_batches
    loss = _loss(shape, ranks.tensor, size, speed, bandwidth) / ranks.pipeline * micro * shape.targets
    return Roofline(
        products=of_layers * products,
        attention=of_layers * attention,
        memory=of_layers * memory,
        launches=of_layers * launches,
        loss=run.micro_batches * loss,
        sums=run.micro_batches * weights * SUM_BYTES / bandwidth,
        update=weights * UPDATE_BYTES / replicas / bandwidth,
    )


def layer_count(run: Run) -> LayerCount:
    """What a layer of this run reads, writes and launches on a GPU."""
    kind = "compiled" if run.recipe.compiles(on_gpu=True) else "eager"
    again = run.recipe.model.recompute
    if again == "selective" and kind == "compiled":
        kind = "compiled, selective"
    forward, backward = COUNTS[kind, "forward"], COUNTS[kind, "backward"]
    return forward + forward + backward if again == "layer" else forward + backward


def _loss(shape: Shape, tensor: int, size: int, speed: float, bandwidth: float) -> float:
    """Seconds a target: matrix products, passes over logits, and the projection's fp32 gradient, to which each piece adds."""
    columns = shape.vocab / tensor
    through_memory = LOGIT_PASSES * size * columns + 12 * columns * shape.hidden / positions_in_piece(int(columns), on_gpu=True)
    return 3 * 2 * shape.hidden * columns / speed + through_memory / bandwidth


def estimated_mfu(run: Run, gpu: Gpu) -> float:
    """Operations of a step with all layers over what the GPU could do meanwhile, if no GPU waits for another."""
    operations = run.recipe.shape.training(run.recipe.model.num_layers, run.tokens_per_step) / run.world_size
    return operations / (gpu.tflops(run.ds.bf16.enabled) * 1e12) / roofline(run, gpu).seconds
