"""One training step: Megatron-Core's schedule over the chunks, DeepSpeed's optimizer behind it.

Megatron-Core owns chunks, groups and the forward-backward schedule; DeepSpeed owns masters, moments, sharding, clipping
and learning rate. The schedule runs on the raw chunks, and DeepSpeed sees them only when all gradients are there.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import (
    _allreduce_non_tensor_model_parallel_grads,
    _allreduce_word_embedding_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from pretrain.config import Run
from pretrain.config.recipe import Kind
from pretrain.data.batch import Batch
from pretrain.errors import TrainingStopped
from pretrain.model.attention import block_mask, dense_mask
from pretrain.model.decoder import Decoder, build_chunks, transformer_config
from pretrain.model.weights import initialize
from pretrain.parallel.optimizer import WholeModel, clip, deepspeed_json, global_norm, mark_copies, parameter_groups
from pretrain.parallel.ranks import Ranks
from pretrain.parallel.stopwatch import Stopwatch
from pretrain.subnetwork import Path, fingerprint


@dataclass(frozen=True)
class Evaluation:
    """Losses per target token on held-out text with all layers active, the same on every rank."""

    loss: float
    by_denoiser: dict[str, float]
    by_mode: dict[str, float]
    """By UL2's mode token; empty where examples have none."""
    by_source: dict[str, float]

    @classmethod
    def of(cls, kinds: Sequence[Kind], sums: Sequence[float], counts: Sequence[float]) -> "Evaluation":
        """From sums of losses and numbers of targets of each kind."""

        def by(name: str) -> dict[str, float]:
            values: dict[str, float] = {}
            for value in dict.fromkeys(getattr(kind, name) for kind in kinds):
                chosen = [i for i, kind in enumerate(kinds) if value is not None and getattr(kind, name) == value]
                count = sum(counts[i] for i in chosen)
                if count:
                    values[value] = sum(sums[i] for i in chosen) / count
            return values

        return cls(sum(sums) / sum(counts), by("denoiser"), by("mode"), by("source"))


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on every rank."""

    loss: float
    """Mean over the target tokens of the global batch, through each sample's own path."""
    grad_norm: float
    """Norm of the whole model's gradient before clipping."""
    lr: float
    """Learning rate of this step's update."""
    targets: int
    """Target tokens of the global batch."""
    forward_seconds: tuple[float, ...]
    """That each rank spent in its own forward passes."""


class Engine:
    """The model and its optimizer on this rank."""

    def __init__(self, run: Run, ranks: Ranks) -> None:
        self.run, self.ranks = run, ranks
        self.dtype = torch.bfloat16 if run.ds.bf16.enabled else torch.float32
        self.config = transformer_config(run.recipe, self.dtype, on_gpu=ranks.device.type == "cuda")
        self.chunks = build_chunks(run.recipe, self.config)
        initialize(self.chunks, run.recipe)
        for chunk in self.chunks:
            chunk.to(ranks.device)
            chunk.ddp_config = DistributedDataParallelConfig()  # Megatron's gradient helpers ask it for FSDP
        self.whole = WholeModel(self.chunks)
        mark_copies(self.whole)
        self.stage = run.ds.zero_optimization.stage
        self.stopwatch = Stopwatch(ranks.device)
        self.deepspeed, *_ = deepspeed.initialize(
            model=self.whole,
            model_parameters=parameter_groups(self.whole, run.ds.optimizer.params.weight_decay),
            mpu=ModelParallelUnit,
            config=deepspeed_json(run),
            dist_init_required=False,
        )

    def step(self, step: int, batches: Sequence[Batch], paths: Sequence[Path]) -> StepResult:
        """Train on this rank's micro-batches of a step, each through its path.

        Raises:
            TrainingStopped: ranks disagree about the paths, or a loss or the gradient is not finite.
        """
        targets = self._agree(step, batches, paths)
        micro_batches = [
            MicroBatch(batch, paths[self.run.path_index(index, self.ranks.data_parallel_rank, len(paths))])
            for index, batch in enumerate(batches)
        ]
        self._set_mode(training=True)
        self._forget_gradients()
        # DeepSpeed averages gradients over replicas, so each replica's part is scaled up by their number.
        sums = self.forward_backward(micro_batches, scale=self.run.data_parallel / targets)
        losses, forward_seconds = self._require_finite(step, [entry["sums"].sum() for entry in sums])
        self._complete_gradients()
        lr = self._set_learning_rate(step)
        grad_norm = self._update()
        if not 0 <= grad_norm < float("inf"):  # ZeRO reports -1 where it is not a number
            raise TrainingStopped(
                f"step {step}: the gradient's norm is not finite although the loss is; nothing of this step is saved; lower the "
                "learning rate and start again, from the newest checkpoint"
            )
        return StepResult(losses / targets, grad_norm, lr, targets, forward_seconds)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], path: Path | None = None) -> Evaluation:
        """Losses through a path, by default with all layers active."""
        whole = path or Path.full(self.run.recipe.model.num_layers)
        self._set_mode(training=False)
        entries = self.forward_backward([MicroBatch(batch, whole) for batch in batches], scale=1.0, forward_only=True)
        self.stopwatch.take()  # belongs to no step
        kinds = self.run.recipe.data.kinds
        totals = torch.zeros(2, len(kinds), dtype=torch.float64, device=self.ranks.device)
        for entry in entries:
            totals += torch.stack([entry["sums"], entry["counts"]])
        self._sum_over_replicas(totals)
        if not torch.isfinite(totals).all():
            raise TrainingStopped("the held-out loss is not finite although the training loss is; the newest checkpoint is older")
        sums, counts = totals.tolist()
        return Evaluation.of(kinds, sums, counts)

    def _agree(self, step: int, batches: Sequence[Batch], paths: Sequence[Path]) -> int:
        """Count the global batch's target tokens and, in the same collective, compare the ranks' paths.

        Before the schedule, because ranks on different paths would wait for each other for ever in it.
        """
        size = self.ranks.world_size
        slots = torch.zeros(1 + size, dtype=torch.int64)
        if _counts_for_replica():
            slots[0] = sum(int(batch.targets.sum()) for batch in batches)
        slots[1 + self.ranks.rank] = fingerprint(step, paths)
        slots = slots.to(self.ranks.device)
        dist.all_reduce(slots)
        targets, *prints = slots.tolist()
        if len(set(prints)) > 1:
            raise TrainingStopped(f"step {step}: {disagreement(prints)}; they must run the same code, recipe and seed")
        if targets == 0:
            raise TrainingStopped(f"step {step}: no target token in the whole batch; check data.train")
        return targets

    def forward_backward(
        self, micro_batches: Sequence["MicroBatch"], scale: float, forward_only: bool = False
    ) -> list[dict[str, Tensor]]:
        """Forward and backward over all micro-batches; entries of the last pipeline rank, none elsewhere."""
        kinds = len(self.run.recipe.data.kinds)
        flex = self.run.recipe.model.attention == "flex"

        def forward(iterator: Iterator[MicroBatch], chunk: Decoder):
            micro = next(iterator)
            on_device = {name: t.to(self.ranks.device, non_blocking=True) for name, t in micro.tensors().items()}
            segments, prefix = on_device["segments"], on_device["prefix"]
            mask = block_mask(segments, prefix) if flex else dense_mask(segments, prefix, self.dtype)
            chunk.route.path = micro.path
            # ZeRO-2 and 3 reduce in the backward pass, which they only notice if their engine ran the forward one.
            model = self.deepspeed if self.stage >= 2 else chunk
            with self.stopwatch.running():
                output = model(on_device["tokens"], on_device["positions"], mask, labels=on_device["labels"])

            def loss(losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                """losses: [b, s]. Returns what is differentiated, the number of targets, and sums by denoiser."""
                targets, kind = on_device["targets"], on_device["kinds"].clamp(min=0).flatten().long()
                wanted = torch.where(targets, losses, 0.0)
                zeros = torch.zeros(kinds, dtype=torch.float64, device=losses.device)
                sums = zeros.index_add(0, kind, wanted.detach().double().flatten())
                counts = zeros.index_add(0, kind, targets.double().flatten())
                return wanted.sum() * scale, targets.sum(dtype=torch.int), {"sums": sums, "counts": counts}

            return output, loss

        interleaved = len(self.chunks) > 1
        iterators = [iter(micro_batches) for _ in self.chunks]
        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if interleaved else iterators[0],
            model=self.chunks if interleaved else self.chunks[0],
            num_microbatches=len(micro_batches),
            seq_length=self.run.recipe.data.sequence_length,
            micro_batch_size=self.run.micro_batch,
            forward_only=forward_only,
        )

    def _require_finite(self, step: int, losses: list[Tensor]) -> tuple[float, tuple[float, ...]]:
        """Sum of the step's losses over all replicas, and seconds of each rank's forward passes.

        Stops the run before the update if a loss is not finite.
        """
        count = self.run.micro_batches
        mine = torch.zeros(count, dtype=torch.float64, device=self.ranks.device)
        if losses:
            mine = torch.stack(losses)
        table = torch.zeros(self.run.data_parallel, count, dtype=torch.float64, device=self.ranks.device)
        if _counts_for_replica():
            table[self.ranks.data_parallel_rank] = mine
        seconds = torch.zeros(self.ranks.world_size, dtype=torch.float64, device=self.ranks.device)
        seconds[self.ranks.rank] = self.stopwatch.take()
        everything = torch.cat([table.flatten(), seconds])
        dist.all_reduce(everything)
        table, seconds = everything[: table.numel()].view_as(table), everything[table.numel() :]
        bad = (~torch.isfinite(table)).nonzero().tolist()
        if bad:
            replica, micro_batch = bad[0]
            raise TrainingStopped(
                f"step {step}, micro-batch {micro_batch} of replica {replica}: the loss is {table[replica, micro_batch].item()}; "
                "nothing was updated; the same command goes on from the newest checkpoint, if there is one"
            )
        return float(table.sum()), tuple(seconds.tolist())

    def _forget_gradients(self) -> None:
        """ZeRO-3 keeps the last gradient of a layer, and would apply it again where the layer is skipped."""
        if self.stage == 3:
            self.deepspeed.optimizer.grad_partitions_flat_buffer.zero_()

    def _complete_gradients(self) -> None:
        """A gradient for every parameter, summed where ranks hold parts or copies of it.

        Layers that a rank's paths skipped have none. Replicas may have skipped different layers, and DeepSpeed's
        reduction must find the same parameters on all of them, so the missing ones become zeros.
        """
        optimizer = self.deepspeed.optimizer
        if self.stage >= 2:
            return  # reduced in the backward pass, on one path for all replicas and without pipeline ranks
        if hasattr(optimizer, "fp32_groups_gradients"):  # bf16: hooks have summed into these fp32 buffers
            for group, gradients, present in zip(
                optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients
            ):
                present[:] = [True] * len(present)
                for parameter, gradient in zip(group, gradients):
                    parameter.main_grad = gradient.view_as(parameter)
        else:
            for parameter in self.whole.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        _allreduce_non_tensor_model_parallel_grads(self.chunks, self.config)
        _allreduce_word_embedding_grads(self.chunks, self.config)

    def _set_learning_rate(self, step: int) -> float:
        """Step n takes the schedule's value n, whether or not the run was resumed, and never a warm-up's 0."""
        groups = self.deepspeed.basic_optimizer.param_groups
        if self.deepspeed.lr_scheduler is not None:
            self.deepspeed.lr_scheduler.step(step)
        else:
            for group in groups:
                group["lr"] = self.run.ds.optimizer.params.lr
        return groups[0]["lr"]

    def _update(self) -> float:
        """Reduce, clip, update; returns the gradient's norm before clipping."""
        if self.stage > 0:
            self.deepspeed.step()
            return float(self.deepspeed.get_global_grad_norm())
        # Without ZeRO DeepSpeed reports no norm, and its clipping counts copies of weights: reduce and clip here.
        self.deepspeed.buffered_allreduce_fallback()
        norm = global_norm(self.whole)
        clip(self.whole, norm, self.run.ds.gradient_clipping)
        self.deepspeed.enable_backward_allreduce = False  # it has been done
        self.deepspeed.step()
        return norm

    def _sum_over_replicas(self, totals: Tensor) -> None:
        """From the ranks that hold a replica's losses to all ranks."""
        if not _counts_for_replica():
            totals.zero_()
        dist.all_reduce(totals)

    def _set_mode(self, training: bool) -> None:
        self.deepspeed.train(training)


def disagreement(prints: Sequence[int]) -> str:
    """Who drew other paths; where there is no majority, who drew the same."""
    parties = [", ".join(str(rank) for rank, p in enumerate(prints) if p == kind) for kind, _ in Counter(prints).most_common()]
    if Counter(prints).most_common(1)[0][1] * 2 > len(prints):
        return f"rank {', '.join(parties[1:])} drew other paths than the rest"
    return f"the ranks drew different paths: {' against '.join(parties)}"


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the schedule at a time. The path belongs to it, whenever its backward pass comes."""

    batch: Batch
    path: Path

    def tensors(self) -> dict[str, Tensor]:
        """The arrays of the batch, [b, s] each."""
        return {name: torch.from_numpy(array) for name, array in vars(self.batch).items()}


class ModelParallelUnit:
    """The groups, as DeepSpeed asks for them: its "model parallel" is tensor times pipeline, tensor ranks adjacent."""

    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_model_parallel_group = staticmethod(parallel_state.get_model_parallel_group)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_pipeline_model_parallel_group = staticmethod(parallel_state.get_pipeline_model_parallel_group)
    get_pipeline_model_parallel_world_size = staticmethod(parallel_state.get_pipeline_model_parallel_world_size)
    get_pipeline_model_parallel_rank = staticmethod(parallel_state.get_pipeline_model_parallel_rank)

    @staticmethod
    def get_model_parallel_world_size() -> int:
        return parallel_state.get_tensor_model_parallel_world_size() * parallel_state.get_pipeline_model_parallel_world_size()

    @staticmethod
    def get_model_parallel_rank() -> int:
        tensor = parallel_state.get_tensor_model_parallel_world_size()
        return parallel_state.get_pipeline_model_parallel_rank() * tensor + parallel_state.get_tensor_model_parallel_rank()


def _counts_for_replica() -> bool:
    """Is this the one rank of its replica that speaks for it? The last pipeline rank has the losses."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True) and parallel_state.get_tensor_model_parallel_rank() == 0
