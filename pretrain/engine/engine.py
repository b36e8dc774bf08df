"""One training step and one evaluation on this rank. Megatron-Core owns chunks, groups and the forward-backward schedule;
the optimizer (optim/) owns masters, moments, sharding, reduction and clipping.

Shapes: b samples in a micro-batch, s positions, h hidden size; the residual stream is [s, b, h] as in Megatron-Core.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from megatron.core.distributed import DistributedDataParallelConfig

from pretrain.config import Run
from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.recipe import Recipe
from pretrain.config.run import Batching
from pretrain.data.batch import Batch
from pretrain.engine import agreement, scoring
from pretrain.engine.decoding import Decoding
from pretrain.engine.loss import agreeing, best_tokens, by_position
from pretrain.engine.micro_batch import MicroBatch
from pretrain.engine.schedule import Entry, Schedule
from pretrain.errors import UserError
from pretrain.model.decoder import build_chunks, transformer_config
from pretrain.model.weights import initialize
from pretrain.optim.deepspeed import DeepSpeedOptimizer
from pretrain.optim.fully_sharded import FullyShardedOptimizer
from pretrain.optim.interface import ModelOptimizer, Ran
from pretrain.optim.layerwise import LayerwiseOptimizer
from pretrain.optim.model import ChunkedModel
from pretrain.optim.rates import learning_rate
from pretrain.ranges import named
from pretrain.ranks.process import Ranks
from pretrain.results import Evaluation, StepResult
from pretrain.stopwatch import Stopwatch
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.units import Units


def build_engine(run: Run, ranks: Ranks) -> "Engine":
    """Build chunks with their initial weights, and the optimizer around them."""
    on_gpu = ranks.device.type == "cuda"
    config = transformer_config(run.recipe, torch.bfloat16 if run.ds.bf16.enabled else torch.float32, on_gpu)
    chunks = build_chunks(run.recipe, config)
    initialize(chunks, run.recipe)
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            layer.cut(run.method.units)
        chunk.to(ranks.device)
        chunk.ddp_config = DistributedDataParallelConfig()  # Megatron's gradient helpers ask it for FSDP
    model = ChunkedModel(chunks, Stopwatch(ranks.device))
    optimizer = _optimizer_of(run)(model, config, run.ds, run.method.units)
    schedule = Schedule(chunks, run.recipe, ranks.device, config.params_dtype, model.stopwatch)
    return Engine(run.recipe, run.ds, run.batching, run.method.units, ranks, model, optimizer, schedule)


def _optimizer_of(run: Run) -> type[DeepSpeedOptimizer | LayerwiseOptimizer]:
    stage = run.ds.zero_optimization.stage
    if stage == 0:
        return DeepSpeedOptimizer
    return FullyShardedOptimizer if stage == 3 and run.data_parallel > 1 else LayerwiseOptimizer


class Engine:
    """The model and its optimizer on this rank."""

    def __init__(
        self,
        recipe: Recipe,
        ds: DeepSpeedConfig,
        batching: Batching,
        units: Units,
        ranks: Ranks,
        model: ChunkedModel,
        optimizer: ModelOptimizer,
        schedule: Schedule,
    ) -> None:
        self.recipe, self.ds, self.batching, self.units, self.ranks = recipe, ds, batching, units, ranks
        self.model, self.optimizer, self.schedule, self.stopwatch = model, optimizer, schedule, model.stopwatch

    def step(self, step: int, batches: Sequence[Batch], paths: Sequence[LayerPath]) -> StepResult:
        """Train on this rank's micro-batches of a step, each through its path, and wait for the result.

        Raises:
            TrainingStopped: ranks disagree about the paths, or a loss or the gradient is not finite.
        """
        return self.begin(step, batches, paths).read()

    def begin(self, step: int, batches: Sequence[Batch], paths: Sequence[LayerPath]) -> agreement.Outcome:
        """Hand a step to the device and return, so that the next one can be made ready while it computes.

        Raises:
            TrainingStopped: ranks disagree about the paths.
        """
        with named(f"step {step}"):
            return self._begin(step, batches, paths)

    def _begin(self, step: int, batches: Sequence[Batch], paths: Sequence[LayerPath]) -> agreement.Outcome:
        # Before the schedule, because ranks on different paths would wait for each other for ever in it.
        targets = agreement.targets_and_paths(self.ranks, step, batches, paths, self.optimizer.fingerprint())
        self.model.train()
        self.optimizer.begin(Ran.of(paths, self.units, self.batching, self.ranks.data_parallel_rank))
        # Gradients are averaged over replicas, so each replica's part is scaled up by their number.
        entries = self.forward_backward(self._micro_batches(batches, paths), scale=self.batching.replicas / targets)
        losses = [entry["sums"].sum() for entry in entries]
        sums = agreement.sum_losses(self.ranks, self.batching, losses, self.stopwatch.read_and_reset())
        lr = learning_rate(self.ds.scheduler, self.ds.optimizer.params.lr, self.recipe.steps, step)
        with named("sums, norm and update"):
            grad_norm = self.optimizer.finish(lr, torch.isfinite(sums).all())
        return agreement.Outcome(step, self.batching, sums, grad_norm, lr, targets, self.ranks.device.type == "cuda")

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], path: LayerPath | None = None) -> Evaluation:
        """Return losses through a path, by default with all layers active."""
        path = path or LayerPath.full(self.recipe.model.num_layers)
        self.optimizer.wake(path)
        self.model.eval()
        entries = self.forward_backward([MicroBatch(batch, path) for batch in batches], scale=1.0, forward_only=True)
        self.stopwatch.read_and_reset()  # belongs to no step
        kinds = self.recipe.data.kinds
        sums, counts = agreement.held_out_totals(self.ranks, len(kinds), entries)
        return Evaluation.of(kinds, sums, counts)

    @torch.no_grad()
    def agreement(self, batches: Sequence[Batch], whole: LayerPath, parts: Mapping[str, LayerPath]) -> dict[str, float]:
        """Return at which share of targets each part's likeliest token is that of the whole: what early exit would keep."""
        self.optimizer.wake(whole)
        self.model.eval()
        entries = self.schedule.run([MicroBatch(batch, whole) for batch in batches], 1.0, True, best_tokens)
        best = [entry["best"].cpu().numpy() for entry in entries]
        # Labels are read by the last pipeline rank alone, which knows the tokens.
        asked = [replace(batch, labels=tokens) for batch, tokens in zip(batches, best)] or list(batches)
        found = {}
        for name, part in parts.items():
            entries = self.schedule.run([MicroBatch(batch, part) for batch in asked], 1.0, True, agreeing)
            sums, counts = agreement.held_out_totals(self.ranks, 1, entries)
            found[name] = float(sums[0] / counts[0])
        self.stopwatch.read_and_reset()  # belongs to no step
        return found

    @property
    def sample_lengths(self) -> list[int]:
        """The lengths of samples that can be scored."""
        longest, layout, on_gpu = self.recipe.data.sequence_length, self.recipe.parallel, self.ranks.device.type == "cuda"
        if self.recipe.compiles(on_gpu) or self.recipe.model.uses_flex(on_gpu):
            return [longest]  # each other length would be compiled anew, and flex skips what attention would compute in vain
        return scoring.sample_lengths(longest, layout.tensor if layout.sequence else 1)

    @torch.no_grad()
    def score(self, samples: Batch, path: LayerPath | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return for each position the loss of its label, and whether no token is likelier, by default with all layers.

        Args:
            samples: [n, s], the same on all ranks, n at least 1, s one of sample_lengths.

        Returns:
            [n, s] float32 and [n, s] bool, on all ranks.

        Raises:
            ValueError: samples of another length, or none.
        """
        (count, length), allowed = samples.tokens.shape, self.sample_lengths
        if count == 0 or length not in allowed:
            lengths = ", ".join(map(str, allowed))
            raise ValueError(
                f"samples to score are {[count, length]}; at least one is wanted, of one of these lengths: {lengths}"
            )
        path, layout = path or LayerPath.full(self.recipe.model.num_layers), self.recipe.parallel
        self.optimizer.wake(path)
        self.model.eval()
        most = self.batching.micro_batch_size * self.recipe.data.sequence_length // length  # as many tokens as in training
        multiple = layout.pipeline if layout.virtual > 1 else 1
        rounds = scoring.Rounds.of(count, most, self.batching.replicas, multiple, even=len(allowed) > 1)
        micro_batches = [MicroBatch(batch, path) for batch in rounds.shares(samples, self.ranks.data_parallel_rank)]
        entries = self.schedule.run(micro_batches, scale=1.0, forward_only=True, reduce=by_position)
        self.stopwatch.read_and_reset()  # belongs to no step
        losses, is_best = scoring.together(self.ranks, entries, rounds, length)
        return losses[:count], is_best[:count]

    def decoding(self, lengths: Sequence[int], prefixes: Sequence[int], longest: int) -> Decoding:
        """Begin to write: prompts of these lengths, of which so many tokens are read both ways, to `longest` tokens at most.

        Raises:
            UserError: the model is split over pipeline ranks.
        """
        if self.recipe.parallel.pipeline > 1:
            raise UserError(
                f"parallel.pipeline {self.recipe.parallel.pipeline}: writing would keep one rank busy at a time; use tensor ranks"
                " or replicas, on which any checkpoint can be loaded"
            )
        path, pieces = LayerPath.full(self.recipe.model.num_layers), self.recipe.model.vocab_size
        self.optimizer.wake(path)
        self.model.eval()
        return Decoding(self.schedule.chunks[0], path, lengths, prefixes, longest, pieces, self.ranks.device)

    def forward_backward(self, micro_batches: Sequence[MicroBatch], scale: float, forward_only: bool = False) -> list[Entry]:
        """Run micro-batches through the schedule; entries of the last pipeline rank, none elsewhere."""
        return self.schedule.run(micro_batches, scale, forward_only)

    def _micro_batches(self, batches: Sequence[Batch], paths: Sequence[LayerPath]) -> list[MicroBatch]:
        replica = self.ranks.data_parallel_rank
        return [
            MicroBatch(batch, paths[self.batching.path_index(index, replica, len(paths))]) for index, batch in enumerate(batches)
        ]
