"""DeepSpeed behind the interface (interface.py, where another way to reduce gradients begins): its engine for ZeRO stage 0, its
flat groups for the others (layerwise.py). The only file that knows DeepSpeed's insides, but for two names below.

Private parts of deepspeed 0.19.8 that are touched here, by the class that has them:

- `DeepSpeedEngine`: `optimizer`, `basic_optimizer`, `buffered_allreduce_fallback`, `enable_backward_allreduce`.
- `BF16_Optimizer`, built without its engine: `bf16_groups_flat`, `fp32_groups_flat_partition`; its module's
  `see_memory_usage`.
- Attributes of parameters: `_hp_mapping` (of BF16_Optimizer's; removed), `ds_pipe_replicated` (optim/model.py sets it).
- `__compatible_ops__` of its module deepspeed.ops (ranks/cpu.py turns one off, before optim/ is imported).
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.errors import UserError
from pretrain.optim.adamw import state_of, tensors_of
from pretrain.optim.groups import FlatGroup, Members, members_by_unit
from pretrain.optim.interface import Ran
from pretrain.optim.model import ChunkedModel, gradient_of, sum_over_model_ranks
from pretrain.optim.names import whole_name
from pretrain.optim.norms import clip, global_norm
from pretrain.optim.settings import ModelParallelUnit, deepspeed_json, parameter_groups
from pretrain.optim.shards import Shard
from pretrain.subnetwork import LayerPath
from pretrain.subnetwork.units import Units


def _say_nothing(message: str, force: bool = False) -> None:
    """Stand in for DeepSpeed's report on memory, before each of which, two for every group, it collects garbage."""


def flat_groups(model: ChunkedModel, ds: DeepSpeedConfig, units: Units) -> tuple[torch.optim.AdamW, list[FlatGroup]]:
    """Have DeepSpeed flatten and shard a model, unit by unit; returns AdamW on the masters, and its groups in order.

    DeepSpeed's bf16 optimizer does this for both precisions; what it would do in a step is done by layerwise.py, for the units
    that the step runs. Each group has one of its own, so that no more than one group's buffers for gradients, which it makes,
    exist at a time.
    """
    deepspeed.init_distributed(dist_init_required=False)
    bf16_optimizer.see_memory_usage = _say_nothing
    groups = [_flat_group(members) for members in members_by_unit(model, units)]
    params = ds.optimizer.params
    # Two groups of many masters each: a fused kernel updates all of a group that have a gradient at once.
    masters: list[dict[str, Any]] = [
        {"params": [g.master for g in groups if g.is_matrices], "weight_decay": params.weight_decay},
        {"params": [g.master for g in groups if not g.is_matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(masters, lr=params.lr, betas=params.betas, eps=params.eps, fused=params.fused), groups


def _flat_group(members: Members) -> FlatGroup:
    flattened = bf16_optimizer.BF16_Optimizer(
        torch.optim.AdamW(members.parameters.values()),
        param_names={parameter: name for name, parameter in members.parameters.items()},
        bfloat16_config=SimpleNamespace(enabled=True, immediate_grad_update=False),
        mpu=ModelParallelUnit,
        dp_process_group=parallel_state.get_data_parallel_group(),
        grad_acc_dtype=torch.float32,
    )
    for parameter in members.parameters.values():
        parameter._hp_mapping = None  # type: ignore[attr-defined]  # it would keep gradients alive
    (weights,), (master,) = flattened.bf16_groups_flat, flattened.fp32_groups_flat_partition
    return FlatGroup(members, weights, master, parallel_state.get_data_parallel_rank())


class DeepSpeedOptimizer:
    """A `ModelOptimizer` around DeepSpeed's engine without ZeRO: it reduces and updates all layers when all gradients are there,
    whatever a step runs."""

    def __init__(self, model: ChunkedModel, config: TransformerConfig, ds: DeepSpeedConfig, units: Units) -> None:
        self.model, self.config, self.clipping, self.units = model, config, ds.gradient_clipping, units
        self.step = 0
        self.engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, ds.optimizer.params.weight_decay),
            mpu=ModelParallelUnit,
            config=deepspeed_json(ds),
            dist_init_required=False,
        )

    def begin(self, ran: Ran) -> None:
        """All weights are there, and no gradient is left of the step before."""

    def finish(self, lr: float, is_good: Tensor) -> Tensor:
        """Reduce, clip, update. DeepSpeed asks the device whether to, so that this waits for it."""
        sum_over_model_ranks(self.model, self.config)  # what tensor and pipeline ranks share
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = lr
        self.step += 1
        # DeepSpeed makes zeros of gradients that are missing because this rank's paths skipped their layers. It reports no norm
        # here, and its clipping counts copies of weights: reduce and clip ourselves.
        self.engine.buffered_allreduce_fallback()
        norm = global_norm(self.model)
        clip((gradient_of(parameter) for parameter in self.model.parameters()), norm, self.clipping)
        if is_good & torch.isfinite(norm):
            self.engine.enable_backward_allreduce = False  # it has been done
            self.engine.step()
        return norm

    def fingerprint(self) -> int:
        """Every step updates all layers, so there is nothing to disagree about."""
        return self.step

    @property
    def updates(self) -> tuple[int, ...]:
        return (self.step,) * self.units.count

    def catch_up(self) -> None:
        """No master is ever behind here."""

    def shards(self) -> list[Shard]:
        """Without ZeRO every parameter is its own master."""
        return [
            Shard(
                whole_name(name),
                parameter,
                self.model.is_copy(parameter),
                start=0,
                length=parameter.numel(),
                offset=0,
                tensors=partial(tensors_of, self.engine.basic_optimizer, parameter),
            )
            for name, parameter in self.model.named_parameters()
        ]

    @torch.no_grad()
    def restored(self, step: int, updates: tuple[int, ...]) -> None:
        """Take over AdamW's count of updates."""
        if set(updates) != {step}:
            raise UserError(
                f"layers of this checkpoint, or parts of them, have been updated {min(updates)} to {max(updates)} times in {step}"
                ' steps (skipped_update "none"), and "zero_optimization.stage" 0 keeps one count for all; use 1, 2 or 3'
            )
        for parameter in self.model.parameters():
            state_of(self.engine.basic_optimizer, parameter)["step"].fill_(step)
        self.step = step

    def wake(self, path: LayerPath) -> None:
        """No weight is ever behind here."""

    def settle(self) -> None:
        """No weight is ever behind here."""
