"""Parameters and memory of each pipeline rank, by counting what the program keeps. An estimate: allocators add their own."""

from dataclasses import dataclass

from pretrain.config import Run
from pretrain.subnetwork.flops import expected_active

GIB = 2**30
FP32 = 4


@dataclass(frozen=True)
class RankMemory:
    """One pipeline rank's share, in bytes on each GPU; its tensor ranks are alike."""

    layers: tuple[int, ...]
    """Global numbers, in the order of the chunks."""
    parameters: int
    weights: float
    gradients: float
    optimizer: float
    """Masters and moments."""
    activations: tuple[float, ...]
    """At the fullest moment of the pipeline's schedule, for each of the method's stages: shorter paths keep less."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + max(self.activations)


def rank_memory(run: Run, rank: int) -> RankMemory:
    """What pipeline rank `rank` of a replica holds."""
    p, m = run.recipe.parallel, run.recipe.model
    bf16, stage, replicas = run.ds.bf16.enabled, run.ds.zero_optimization.stage, run.data_parallel
    element = 2 if bf16 else FP32
    count = parameters(run, rank)
    per_chunk = m.num_layers // (p.pipeline * p.virtual)
    layers = tuple(
        (chunk * p.pipeline + rank) * per_chunk + n for chunk in range(p.virtual) for n in range(per_chunk)
    )
    moments = 2 * FP32
    masters = FP32 if stage > 0 else 0  # without ZeRO, fp32 weights are their own masters
    return RankMemory(
        layers,
        count,
        weights=count * element / (replicas if stage == 3 else 1),
        gradients=count * FP32 / (replicas if stage >= 2 else 1),
        optimizer=count * (moments + masters) / (replicas if stage >= 1 else 1),
        activations=tuple(
            _activations(run, rank, len(layers) * float(expected_active(run.method, stage)) / m.num_layers, element)
            for stage in run.method.stages
        ),
    )


def parameters(run: Run, rank: int) -> int:
    """Parameters on each GPU of pipeline rank `rank`, as Megatron-Core places them."""
    p, m = run.recipe.parallel, run.recipe.model
    h, f, tensor = m.hidden_size, m.ffn_hidden_size, p.tensor
    layer = (4 * h * h + 3 * h * f) // tensor + 2 * h
    embedding = m.padded_vocab_size * h // tensor
    first, last = rank == 0, rank == p.pipeline - 1
    count = m.num_layers // p.pipeline * layer + (embedding if first else 0) + (h if last else 0)
    own_output = last and (not first or not m.tied_embeddings)
    return count + (embedding if own_output else 0)


def layer_activations(run: Run) -> float:
    """Elements that one layer keeps for its backward pass, a micro-batch.

    As autograd keeps it (a test compares): both norms' inputs and outputs; of attention the fused q, k, v, turned q and k, and
    three of the mix; of the feed-forward block gate and up, the activated gate, the product and one copy.
    """
    p, m = run.recipe.parallel, run.recipe.model
    tokens = run.micro_batch * run.recipe.data.sequence_length
    stream = m.hidden_size / (p.tensor if p.sequence else 1)
    return tokens * (4 * stream + (8 * m.hidden_size + 5 * m.ffn_hidden_size) / p.tensor)


def _activations(run: Run, rank: int, layers: float, element: int) -> float:
    p, m = run.recipe.parallel, run.recipe.model
    length = run.recipe.data.sequence_length
    tokens = run.micro_batch * length
    layer = layer_activations(run) * element
    stream = tokens * m.hidden_size / (p.tensor if p.sequence else 1) * element
    in_flight = min(run.micro_batches * p.virtual, _chunks_in_flight(p.pipeline, p.virtual, rank)) / p.virtual
    kept = layers * (stream if m.recompute == "layer" else layer) * in_flight
    working = layer if m.recompute == "layer" else 0.0
    mask = run.micro_batch * length**2 * element * in_flight if m.attention == "sdpa" else 0.0
    head = tokens * m.padded_vocab_size / p.tensor * (element + 2 * FP32) if rank == p.pipeline - 1 else 0.0
    return kept + working + mask + head


def _chunks_in_flight(ranks: int, chunks: int, rank: int) -> int:
    """Chunk passes whose activations a rank holds at most: its warm-up forwards and one more."""
    warm_up = ranks - rank - 1 if chunks == 1 else (ranks - rank - 1) * 2 + (chunks - 1) * ranks
    return warm_up + 1
