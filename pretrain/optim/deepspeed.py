"""DeepSpeed's ZeRO behind the interface (interface.py, where another way to reduce gradients begins). The only file that knows
DeepSpeed's insides, but for two names below.

Private parts of deepspeed 0.19.8 that are touched here, by the class that has them:

- `DeepSpeedEngine`: `optimizer`, `basic_optimizer`, `buffered_allreduce_fallback`, `enable_backward_allreduce`.
- `BF16_Optimizer` (bf16, stage 1): `bf16_groups`, `fp32_groups_gradients`, `fp32_groups_has_gradients`,
  `fp32_groups_flat_partition`, `update_lp_params`.
- `DeepSpeedZeroOptimizer` (stages 1 and 2): `single_partition_of_fp32_groups`, `update_lp_params`.
- `DeepSpeedZeroOptimizer_Stage3`: `fp32_partitioned_groups_flat`, `grad_partitions_flat_buffer`,
  `grad_position`, `get_param_id`, `fp16_groups`, `persistent_parameters`, `_partition_all_parameters`,
  `_reassign_or_swap_out_partitioned_parameters`.
- Attributes of parameters: `_hp_mapping` (stages 1 and 2), `ds_shape` and `ds_numel` (stage 3), `ds_pipe_replicated`
  (optim/model.py sets it); `lp_fragment_address`, `hp_fragment_address` and `param_group_index` of `_hp_mapping`.
- `__compatible_ops__` of its module deepspeed.ops (ranks/cpu.py turns one off, before optim/ is imported).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import deepspeed
import torch
from megatron.core import parallel_state
from megatron.core.distributed.finalize_model_grads import (
    _allreduce_non_tensor_model_parallel_grads,
    _allreduce_word_embedding_grads,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.model.decoder import Decoder
from pretrain.optim.interface import Ran
from pretrain.optim.model import ChunkedModel
from pretrain.optim.names import MASTER, MOMENTS
from pretrain.optim.norms import clip, global_norm
from pretrain.optim.settings import ModelParallelUnit, deepspeed_json, parameter_groups
from pretrain.optim.shards import Shard


class DeepSpeedOptimizer:
    """A `ModelOptimizer`: DeepSpeed sees the raw chunks' gradients when all are there, and from stage 2 on in the backward
    pass."""

    def __init__(self, model: ChunkedModel, config: TransformerConfig, ds: DeepSpeedConfig) -> None:
        self.model, self.config, self.clipping = model, config, ds.gradient_clipping
        self.zero_stage = ds.zero_optimization.stage
        self.engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, ds.optimizer.params.weight_decay),
            mpu=ModelParallelUnit,
            config=deepspeed_json(ds),
            dist_init_required=False,
        )

    def begin(self, ran: Ran) -> None:
        """Forget the last step's gradients; DeepSpeed reduces and updates all layers, whatever a step runs.

        ZeRO-3 keeps the last gradient of a layer, and would apply it again where the layer is skipped.
        """
        if self.zero_stage == 3:
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()

    def entry(self, chunk: Decoder) -> Callable[..., Tensor]:
        """ZeRO-2 and 3 reduce in the backward pass, which they only notice if DeepSpeed's engine ran the forward pass."""
        return self.engine if self.zero_stage >= 2 else chunk

    def finish(self, lr: float) -> float:
        """Complete, reduce, clip, update."""
        if self.zero_stage < 2:  # else reduced in the backward pass, on one path for all replicas and without pipeline ranks
            self.complete_gradients()
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = lr
        if self.zero_stage > 0:
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
        optimizer = self.engine.optimizer
        if hasattr(optimizer, "fp32_groups_gradients"):  # bf16: hooks have summed into these fp32 buffers
            for group, gradients, present in zip(
                optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients
            ):
                present[:] = [True] * len(present)
                for parameter, gradient in zip(group, gradients):
                    parameter.main_grad = gradient.view_as(parameter)
        else:
            for parameter in self.model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        chunks = list(self.model.chunks)
        _allreduce_non_tensor_model_parallel_grads(chunks, self.config)
        _allreduce_word_embedding_grads(chunks, self.config)

    def shards(self) -> list[Shard]:
        if self.zero_stage == 3:
            find = self._of_zero_3
        elif hasattr(self.engine.optimizer, "update_lp_params"):
            find = self._of_zero_1_and_2
        else:
            find = self._without_zero
        return [shard for name, parameter in self.model.named_parameters() for shard in find(name, parameter) if shard.length > 0]

    @torch.no_grad()
    def restored(self, step: int) -> None:
        """Bring the weights that the model computes with up to their masters, and AdamW's count of updates to `step`."""
        for shard in self.shards():
            self._state_of(self._master_of(shard))["step"].fill_(step)
        optimizer = self.engine.optimizer
        if self.zero_stage == 3:
            optimizer._partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:  # small ones stay in full on every rank
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif hasattr(optimizer, "update_lp_params"):
            optimizer.update_lp_params()

    def settle(self) -> None:
        """Nothing is ever late here: every step updates and gathers all weights."""

    def _without_zero(self, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
        """Without ZeRO the parameter is its own master."""
        yield self._shard(name, parameter, 0, parameter.numel(), parameter, 0)

    def _of_zero_1_and_2(self, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
        """Also bf16's: all parameters of a group lie one behind the other and are cut into as many stretches as there are
        replicas."""
        optimizer, mapping = self.engine.optimizer, parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return  # all of it is with other replicas
        is_bf16 = hasattr(optimizer, "bf16_groups")
        masters = optimizer.fp32_groups_flat_partition if is_bf16 else optimizer.single_partition_of_fp32_groups
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        yield self._shard(name, parameter, here.start, here.numel, masters[mapping.param_group_index], there.start)

    def _of_zero_3(self, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
        """Each parameter is cut by itself, and padded at its end."""
        optimizer = self.engine.optimizer
        group, offset, stretch = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = parallel_state.get_data_parallel_rank() * stretch
        length = min(stretch, parameter.ds_numel - start)  # type: ignore[attr-defined]
        yield self._shard(name, parameter, start, length, optimizer.fp32_partitioned_groups_flat[group], offset)

    def _shard(self, name: str, parameter: torch.nn.Parameter, start: int, length: int, master: Tensor, offset: int) -> Shard:
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        return Shard(name, parameter, shape, self.model.is_copy(parameter), start, length, offset, partial(self._tensors, master))

    def _master_of(self, shard: Shard) -> Tensor:
        return shard.tensors()[MASTER]

    def _tensors(self, master: Tensor) -> Mapping[str, Tensor]:
        """Return a master with AdamW's moments of it, zeros before the first update."""
        state = self._state_of(master)
        for kind in MOMENTS:
            if kind not in state:
                state[kind] = torch.zeros_like(master, requires_grad=False)
        return {MASTER: master, **{kind: state[kind] for kind in MOMENTS}}

    def _state_of(self, master: Tensor) -> dict[str, Any]:
        """Return what AdamW keeps beside a master, its count of updates included."""
        optimizer = self.engine.basic_optimizer
        state = optimizer.state[master]
        if "step" not in state:
            where = master.device if optimizer.defaults["fused"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=where)
        return state
