"""DeepSpeed behind the interface (interface.py, where another way to reduce gradients begins): its engine for ZeRO stages 0 and
3, its flat groups for 1 and 2 (layerwise.py). The only file that knows DeepSpeed's insides, but for two names below.

Private parts of deepspeed 0.19.8 that are touched here, by the class that has them:

- `DeepSpeedEngine`: `optimizer`, `basic_optimizer`, `buffered_allreduce_fallback`, `enable_backward_allreduce`.
- `BF16_Optimizer`, built without its engine: `bf16_groups_flat`, `fp32_groups_flat_partition`, `fp32_groups_gradients_flat`;
  its module's `see_memory_usage`.
- `DeepSpeedZeroOptimizer_Stage3`: `fp32_partitioned_groups_flat`, `grad_partitions_flat_buffer`,
  `grad_position`, `get_param_id`, `fp16_groups`, `persistent_parameters`, `_partition_all_parameters`,
  `_reassign_or_swap_out_partitioned_parameters`.
- Attributes of parameters: `_hp_mapping` (of BF16_Optimizer's; removed), `ds_shape` and `ds_numel` (stage 3),
  `ds_pipe_replicated` (optim/model.py sets it).
- `__compatible_ops__` of its module deepspeed.ops (ranks/cpu.py turns one off, before optim/ is imported).
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.errors import UserError
from pretrain.model.decoder import Decoder
from pretrain.optim.adamw import state_of, tensors_of
from pretrain.optim.groups import FlatGroup, members_by_layer
from pretrain.optim.interface import Ran
from pretrain.optim.model import ChunkedModel, sum_over_model_ranks
from pretrain.optim.names import MASTER
from pretrain.optim.norms import clip, global_norm
from pretrain.optim.settings import ModelParallelUnit, deepspeed_json, parameter_groups
from pretrain.optim.shards import Shard
from pretrain.subnetwork import LayerPath


def _say_nothing(message: str, force: bool = False) -> None:
    """Stand in for DeepSpeed's report on memory, before each of which, two for every group, it collects garbage."""


def flat_groups(model: ChunkedModel, ds: DeepSpeedConfig) -> tuple[torch.optim.AdamW, list[FlatGroup]]:
    """Have DeepSpeed flatten and shard a model, layer by layer; returns AdamW on the masters, and its groups in order.

    DeepSpeed's bf16 optimizer does this for both precisions, and keeps fp32 sums of gradients; what it would do in a step is done
    by layerwise.py, for the layers that the step runs.
    """
    described, params = members_by_layer(model), ds.optimizer.params
    adamw = torch.optim.AdamW(
        [{"params": list(m.parameters.values()), "weight_decay": params.weight_decay if m.decays else 0.0} for m in described],
        lr=params.lr,
        betas=params.betas,
        eps=params.eps,
        fused=params.fused,
    )
    deepspeed.init_distributed(dist_init_required=False)
    bf16_optimizer.see_memory_usage = _say_nothing
    optimizer = bf16_optimizer.BF16_Optimizer(
        adamw,
        param_names={parameter: name for name, parameter in model.named_parameters()},
        bfloat16_config=SimpleNamespace(enabled=True, immediate_grad_update=False),
        mpu=ModelParallelUnit,
        dp_process_group=parallel_state.get_data_parallel_group(),
        grad_acc_dtype=torch.float32,
    )
    for parameter in model.parameters():
        parameter._hp_mapping = None  # type: ignore[attr-defined]  # it would keep gradients alive
    flat = zip(optimizer.bf16_groups_flat, optimizer.fp32_groups_flat_partition, optimizer.fp32_groups_gradients_flat)
    replica = parallel_state.get_data_parallel_rank()
    return adamw, [FlatGroup(m, *tensors, replica) for m, tensors in zip(described, flat)]


class DeepSpeedOptimizer:
    """A `ModelOptimizer` around DeepSpeed's engine, which reduces and updates all layers whatever a step runs: without ZeRO when
    all gradients are there, in stage 3 in the backward pass."""

    def __init__(self, model: ChunkedModel, config: TransformerConfig, ds: DeepSpeedConfig, layers: int) -> None:
        self.model, self.config, self.clipping, self.layers = model, config, ds.gradient_clipping, layers
        self.is_zero_3 = ds.zero_optimization.stage == 3
        self.step = 0
        self.engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, ds.optimizer.params.weight_decay),
            mpu=ModelParallelUnit,
            config=deepspeed_json(ds),
            dist_init_required=False,
        )

    def begin(self, ran: Ran) -> None:
        """Forget the last step's gradients: ZeRO-3 keeps a layer's last one, and would apply it again where it is skipped."""
        if self.is_zero_3:
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()

    def entry(self, chunk: Decoder) -> Callable[..., Tensor]:
        """ZeRO-3 reduces in the backward pass, which it only notices if DeepSpeed's engine ran the forward pass."""
        return self.engine if self.is_zero_3 else chunk

    def finish(self, lr: float) -> float:
        """Complete, reduce, clip, update."""
        if not self.is_zero_3:  # else reduced in the backward pass, on one path for all replicas and without pipeline ranks
            self.complete_gradients()
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = lr
        self.step += 1
        if self.is_zero_3:
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        # Without ZeRO DeepSpeed reports no norm, and its clipping counts copies of weights: reduce and clip here.
        self.engine.buffered_allreduce_fallback()
        norm = global_norm(self.model)
        clip(self.model, norm, self.clipping)
        self.engine.enable_backward_allreduce = False  # it has been done
        self.engine.step()
        return norm

    def complete_gradients(self) -> None:
        """Make a gradient for every parameter, summed where ranks hold parts or copies of it.

        Layers that a rank's paths skipped have none. Replicas may have skipped different layers, and DeepSpeed's reduction must
        find the same parameters on all of them, so the missing ones become zeros.
        """
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sum_over_model_ranks(self.model, self.config)

    def fingerprint(self) -> int:
        """Every step updates all layers, so there is nothing to disagree about."""
        return self.step

    @property
    def updates(self) -> tuple[int, ...]:
        return (self.step,) * self.layers

    def catch_up(self) -> None:
        """No master is ever behind here."""

    def shards(self) -> list[Shard]:
        find = self._of_zero_3 if self.is_zero_3 else self._without_zero
        return [shard for name, parameter in self.model.named_parameters() for shard in find(name, parameter) if shard.length > 0]

    @torch.no_grad()
    def restored(self, step: int, updates: tuple[int, ...]) -> None:
        """Bring the weights that the model computes with up to their masters, and AdamW's count of updates to `step`."""
        if set(updates) != {step}:
            raise UserError(
                f"the layers of this checkpoint have been updated {min(updates)} to {max(updates)} times in {step} steps"
                ' (skipped_update "none"), and "zero_optimization.stage" 0 and 3 keep one count for all; use 1 or 2'
            )
        for shard in self.shards():
            state_of(self.engine.basic_optimizer, shard.tensors()[MASTER])["step"].fill_(step)
        self.step, optimizer = step, self.engine.optimizer
        if self.is_zero_3:
            optimizer._partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:  # small ones stay in full on every rank
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def settle(self, path: LayerPath | None = None) -> None:
        """Every step gathers all weights, or none outside a pass."""

    def _without_zero(self, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
        """Without ZeRO the parameter is its own master."""
        yield self._shard(name, parameter, 0, parameter.numel(), parameter, 0)

    def _of_zero_3(self, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
        """Each parameter is cut by itself, and padded at its end."""
        optimizer = self.engine.optimizer
        group, offset, stretch = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = parallel_state.get_data_parallel_rank() * stretch
        length = min(stretch, parameter.ds_numel - start)  # type: ignore[attr-defined]
        yield self._shard(name, parameter, start, length, optimizer.fp32_partitioned_groups_flat[group], offset)

    def _shard(self, name: str, parameter: torch.nn.Parameter, start: int, length: int, master: Tensor, offset: int) -> Shard:
        shape, tensors = (
            tuple(getattr(parameter, "ds_shape", parameter.shape)),
            partial(tensors_of, self.engine.basic_optimizer, master),
        )
        return Shard(name, parameter, shape, self.model.is_copy(parameter), start, length, offset, tensors)
