"""Parameters and memory of each pipeline rank, by counting what the program keeps. An estimate: allocators add their own."""

from dataclasses import dataclass

from pretrain.config import Run
from pretrain.cost.loss import positions_in_piece
from pretrain.plan.balance import spread

GIB = 2**30
FP32 = 4
ON_THE_WAY = 2
"""As in optim/layerwise.py, which loads the libraries of a GPU; a test compares them."""
DENSE_BUCKET = 500_000_000
"""Elements that DeepSpeed flattens at a time without ZeRO (engine.py, MEMORY_OPT_ALLREDUCE_SIZE)."""
LENT = 2
"""Layers whose weights ZeRO-3 has at a time: one that computes and the next (optim/fully_sharded.py)."""


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
    """At the fullest moment of the pipeline's schedule, for each of the method's stages, on the path that gives this rank the
    most layers among those looked at (plan/balance.py)."""
    buffers: float
    """Copies of gradients and of weights that are cut for their way to replicas, or sent in another type."""
    buffers_stay: bool
    """Whether they exist beside the activations; else gradients are reduced when activations are gone."""

    @property
    def total(self) -> float:
        working = max(self.activations)
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + (working + self.buffers if self.buffers_stay else max(working, self.buffers))
        )


def rank_memory(run: Run, rank: int) -> RankMemory:
    """What pipeline rank `rank` of a replica holds."""
    p, m = run.recipe.parallel, run.recipe.model
    bf16, stage, replicas = run.ds.bf16.enabled, run.ds.zero_optimization.stage, run.data_parallel
    element = 2 if bf16 else FP32
    count = parameters(run, rank)
    per_chunk = m.num_layers // (p.pipeline * p.virtual)
    layers = tuple((chunk * p.pipeline + rank) * per_chunk + n for chunk in range(p.virtual) for n in range(per_chunk))
    moments = 2 * FP32
    masters = FP32 if stage > 0 else 0  # without ZeRO, fp32 weights are their own masters
    return RankMemory(
        layers,
        count,
        weights=_weights(run, count) * element,
        gradients=_gradients(run, count),
        optimizer=count * (moments + masters) / (replicas if stage >= 1 else 1),
        activations=tuple(
            _activations(run, rank, max(spread(run, s).of_rank(rank, p.pipeline)), element) for s in run.method.stages
        ),
        buffers=_buffers(run, count),
        buffers_stay=stage >= 2 or run.ds.zero_optimization.overlap_comm,
    )


def _weights(run: Run, count: int) -> int:
    """All of them, but in stage 3: that has the matrices of two layers at a time, what is outside layers, and all vectors."""
    layers = run.recipe.model.num_layers // run.recipe.parallel.pipeline
    if run.ds.zero_optimization.stage < 3 or run.data_parallel == 1:
        return count
    return count - max(0, layers - LENT) * (layer_parameters(run) - _layer_vectors(run))


def _gradients(run: Run, count: int) -> float:
    """All of them in fp32, but in stage 3 and, with one micro-batch a step, in stage 2: that keeps those of the layers whose sums
    are under way, and own parts of the rest (optim/layerwise.py)."""
    stage, replicas = run.ds.zero_optimization.stage, run.data_parallel
    early = run.micro_batches == 1 and run.recipe.parallel.pipeline == 1
    if replicas == 1 or stage < 2 or (stage == 2 and not early):
        return count * FP32
    layers = run.recipe.model.num_layers // run.recipe.parallel.pipeline
    on_the_way = min(layers, (ON_THE_WAY if run.ds.zero_optimization.overlap_comm else 0) + 1)
    outside = count - layers * layer_parameters(run)
    return count * FP32 / replicas + (on_the_way * layer_parameters(run) + outside) * FP32


def _buffers(run: Run, count: int) -> float:
    """Stage 0 flattens gradients a bucket at a time. The others copy what they send only where it is cut, or sent in another
    type: in stage 1, and where there is a pipeline, all that is under way at once, else what a few layers send."""
    zero, replicas = run.ds.zero_optimization, run.data_parallel
    if replicas == 1:
        return 0.0
    if zero.stage == 0:
        return min(count, DENSE_BUCKET) * FP32
    layer = layer_parameters(run)
    largest = max(layer, count - layer * (run.recipe.model.num_layers // run.recipe.parallel.pipeline))
    few = max(layer * ((ON_THE_WAY if zero.overlap_comm else 0) + 1), largest)
    at_once = count if zero.stage == 1 or run.recipe.parallel.pipeline > 1 else min(count, few)
    sent = 2 if run.ds.communication_data_type == "bf16" else FP32
    sums = 0.0
    if sent != FP32 or largest > zero.reduce_bucket_size:
        sums = at_once * sent + (count * FP32 / replicas if zero.stage == 1 else 0.0)  # and own parts, which then lie elsewhere
    gathered = LENT * layer if zero.stage == 3 else count
    weights = gathered * (2 if run.ds.bf16.enabled else FP32) if largest > zero.allgather_bucket_size else 0.0
    return max(sums, weights)


def layer_parameters(run: Run) -> int:
    """Parameters of one layer on each GPU."""
    m = run.recipe.model
    h, f = m.hidden_size, m.ffn_hidden_size
    up = 2 * f if m.feed_forward == "swiglu" else f
    return (2 * (m.query_size + m.key_size) * h + (up + f) * h) // run.recipe.parallel.tensor + _layer_vectors(run)


def unit_parameters(run: Run) -> tuple[float, float, float]:
    """Parameters of one layer on each GPU by what runs or sleeps by itself: the layer itself, and, where it is cut, each of its
    groups of heads and each of its blocks of feed-forward columns; those of all tensor ranks have a share of them each."""
    m, units, tensor = run.recipe.model, run.method.units, run.recipe.parallel.tensor
    h, up = m.hidden_size, m.ffn_hidden_size * (2 if m.feed_forward == "swiglu" else 1)
    fused = m.query_size + 2 * m.key_size
    heads = (fused * (h + bool(m.biases)) + m.query_size * h) / tensor if units.groups else 0.0
    columns = (up * (h + (m.biases is True)) + m.ffn_hidden_size * h) / tensor if units.columns else 0.0
    return layer_parameters(run) - heads - columns, heads / max(1, units.groups), columns / max(1, units.columns)


def _layer_vectors(run: Run) -> int:
    """Those of them in norms and biases."""
    m = run.recipe.model
    h, f = m.hidden_size, m.ffn_hidden_size
    up = 2 * f if m.feed_forward == "swiglu" else f
    norm = h if m.norm == "rmsnorm" else 2 * h
    fused, tensor = m.query_size + 2 * m.key_size, run.recipe.parallel.tensor
    biases = fused // tensor if m.biases else 0
    biases += up // tensor + 2 * h if m.biases is True else 0
    heads = {False: 0, True: 2 * m.head_size, "whole": (m.query_size + m.key_size) // tensor}[m.qk_norm]
    return biases + 2 * norm + heads


def parameters(run: Run, rank: int) -> int:
    """Parameters on each GPU of pipeline rank `rank`, as Megatron-Core places them."""
    p, m = run.recipe.parallel, run.recipe.model
    h, tensor = m.hidden_size, p.tensor
    norm = h if m.norm == "rmsnorm" else 2 * h
    embedding = m.padded_vocab_size * h // tensor
    first, last = rank == 0, rank == p.pipeline - 1
    positions = run.recipe.data.sequence_length * h if m.position_embedding == "learned" else 0
    head = h * h + h + 2 * h + m.padded_vocab_size // tensor if m.head == "transform" else 0
    count = (
        m.num_layers // p.pipeline * layer_parameters(run)
        + (embedding + positions if first else 0)
        + (norm + head if last else 0)
    )
    own_output = last and (not first or not m.tied_embeddings)
    return count + (embedding if own_output else 0)


def layer_activations(run: Run) -> float:
    """Elements that one layer keeps for its backward pass, a micro-batch.

    As autograd keeps it (a test compares): both norms' inputs and outputs; of attention the fused q, k, v, normed and turned q
    and k, and three of the mix; of a SwiGLU block gate and up, the activated gate, the product and one copy, of a GELU block two.
    With selective recomputation the layer's input and what its matrix products, attention and tensor ranks' sums return.
    """
    p, m = run.recipe.parallel, run.recipe.model
    tokens = run.micro_batch * run.recipe.data.sequence_length
    stream = m.hidden_size / (p.tensor if p.sequence else 1)
    if m.recompute == "selective":
        width = 2 if m.feed_forward == "swiglu" else 1
        summed = 2 * (stream + m.hidden_size) if p.tensor > 1 else 2 * m.hidden_size
        gathered = 2 * m.hidden_size if p.sequence else 0
        return tokens * (stream + summed + gathered + (2 * (m.query_size + m.key_size) + width * m.ffn_hidden_size) / p.tensor)
    inner = 5 if m.feed_forward == "swiglu" else 2
    normed = {False: 0, True: 1, "whole": 2}[m.qk_norm]
    attention = (5 + normed) * m.query_size + (3 + normed) * m.key_size
    return tokens * (4 * stream + (attention + inner * m.ffn_hidden_size) / p.tensor)


def _activations(run: Run, rank: int, layers: float, element: int) -> float:
    p, m = run.recipe.parallel, run.recipe.model
    length = run.recipe.data.sequence_length
    tokens = run.micro_batch * length
    layer = layer_activations(run) * element
    stream = tokens * m.hidden_size / (p.tensor if p.sequence else 1) * element
    passes = min(run.micro_batches * p.virtual, _chunks_in_flight(p.pipeline, p.virtual, rank))
    kept = layers / p.virtual * (stream if m.recompute == "layer" else layer) * passes
    working = layer if m.recompute == "layer" else 0.0
    mask = run.micro_batch * length**2 * element * passes if not m.uses_flex(on_gpu=True) else 0.0  # made for every pass
    return kept + working + mask + (_loss(run, tokens, element) if rank == p.pipeline - 1 else 0.0)


def _loss(run: Run, tokens: int, element: int) -> float:
    """Bytes beside the last layer's output: a piece's logits and two passes over them in fp32, the projection's gradient in fp32
    and as it is handed on, and the gradient of what it read; where not all positions are targets, what it read of these, too, and
    its gradient."""
    m, rows = run.recipe.model, run.recipe.model.padded_vocab_size // run.recipe.parallel.tensor
    piece = min(tokens, positions_in_piece(rows, on_gpu=True)) * rows * (element + 2 * FP32)
    share = run.recipe.shape.targets
    read = tokens * m.hidden_size * element * (1 if share == 1 else 1 + 2 * share)
    return piece + rows * m.hidden_size * (FP32 + 2 * element) + read


def _chunks_in_flight(ranks: int, chunks: int, rank: int) -> int:
    """Chunk passes whose activations a rank holds at most: its warm-up forwards and one more."""
    warm_up = ranks - rank - 1 if chunks == 1 else (ranks - rank - 1) * 2 + (chunks - 1) * ranks
    return warm_up + 1
