"""Which masters and moments this rank owns, whatever ZeRO has made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from pretrain.parallel.optimizer import WholeModel

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by the names that PyTorch gives them."""


@dataclass(frozen=True)
class Shard:
    """A stretch of one parameter, of which this rank keeps fp32 master and moments."""

    name: str
    """Of the parameter in the whole model."""
    parameter: torch.nn.Parameter
    start: int
    """First element, in what this rank holds of the parameter, flattened."""
    length: int
    master: Tensor
    """The flat tensor that the optimizer updates; a ZeRO rank has several parameters in one."""
    offset: int
    """Of the stretch in it."""

    def view(self, numbers: Tensor) -> Tensor:
        """The stretch within `numbers`, which is laid out as `master` is."""
        return numbers.detach().view(-1).narrow(0, self.offset, self.length)

    def cut(self, start: int, length: int) -> "Shard":
        """A part of it, counted from its beginning."""
        return Shard(self.name, self.parameter, self.start + start, length, self.master, self.offset + start)


def own_shards(model: WholeModel, engine: Any) -> list[Shard]:
    """All that this rank keeps.

    Args:
        engine: DeepSpeed's, around the model.
    """
    optimizer = engine.optimizer
    find = (
        _of_zero_3
        if hasattr(optimizer, "fp16_partitioned_groups_flat")
        else _of_zero_1_and_2
        if hasattr(optimizer, "update_lp_params")
        else _whole
    )
    return [
        shard for name, parameter in model.named_parameters() for shard in find(optimizer, name, parameter) if shard.length > 0
    ]


def _whole(optimizer: Any, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
    """Without ZeRO the parameter is its own master."""
    yield Shard(name, parameter, 0, parameter.numel(), parameter, 0)


def _of_zero_1_and_2(optimizer: Any, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
    """Also bf16's. All parameters of a group lie one behind the other and are cut into as many stretches as there are
    replicas."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return  # all of it is with other replicas
    masters = (
        optimizer.fp32_groups_flat_partition if hasattr(optimizer, "bf16_groups") else optimizer.single_partition_of_fp32_groups
    )
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    yield Shard(name, parameter, here.start, here.numel, masters[mapping.param_group_index], there.start)


def _of_zero_3(optimizer: Any, name: str, parameter: torch.nn.Parameter) -> Iterator[Shard]:
    """Each parameter is cut by itself, and padded at its end."""
    group, offset, stretch = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = parallel_state.get_data_parallel_rank() * stretch
    length = min(stretch, parameter.ds_numel - start)
    yield Shard(name, parameter, start, length, optimizer.fp32_partitioned_groups_flat[group], offset)


def moments(engine: Any, master: Tensor) -> dict[str, Tensor]:
    """AdamW's moments of a master, zeros before the first update."""
    states = engine.basic_optimizer.state[master]
    if "step" not in states:
        fused = engine.basic_optimizer.defaults["fused"]
        states["step"] = torch.zeros((), dtype=torch.float32, device=master.device if fused else "cpu")
    for kind in MOMENTS:
        if kind not in states:
            states[kind] = torch.zeros_like(master, requires_grad=False)
    return {kind: states[kind] for kind in MOMENTS}


@torch.no_grad()
def masters_changed(engine: Any, shards: list[Shard], updates: int) -> None:
    """Bring the weights that the model computes with up to their masters, and AdamW's count of updates to `updates`."""
    for master in {id(shard.master): shard.master for shard in shards}.values():
        engine.basic_optimizer.state[master]["step"].fill_(updates)
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # small ones stay in full on every rank
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
