"""The model as DeepSpeed sees it: one module with global names, two groups of weights, one JSON."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys

from pretrain.config import Run
from pretrain.model.decoder import Decoder


class WholeModel(torch.nn.Module):
    """This rank's chunks under global parameter names; local ones collide between pipeline ranks in a checkpoint."""

    def __init__(self, chunks: list[Decoder]) -> None:
        super().__init__()
        self.chunks = torch.nn.ModuleList(chunks)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for chunk in self.chunks:
            for name, parameter in chunk.named_parameters(remove_duplicate=remove_duplicate):
                yield chunk.global_name(name), parameter

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Only ZeRO-2 and 3 come this way, on the single chunk that they allow; otherwise the schedule runs the chunks."""
        (chunk,) = self.chunks
        return chunk(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> OrderedDict[str, Tensor]:
        return OrderedDict((name, parameter.detach()) for name, parameter in self.named_parameters())

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> _IncompatibleKeys:
        mine = dict(self.named_parameters())
        if mine.keys() != state.keys():
            raise ValueError(f"weights do not belong to this model: {sorted(mine.keys() ^ state.keys())[:5]}")
        for name, parameter in mine.items():
            parameter.copy_(state[name])
        return _IncompatibleKeys([], [])


def mark_copies(model: WholeModel) -> None:
    """Mark weights that another pipeline rank counts: the tied embedding's copy beside the output projection."""
    has_input = any(chunk.pre_process for chunk in model.chunks)
    for name, parameter in model.named_parameters():
        parameter.ds_pipe_replicated = name == "embedding.word_embeddings.weight" and not has_input


@torch.no_grad()
def global_norm(model: WholeModel) -> float:
    """Norm of the whole model's gradient: every weight once, however many ranks hold parts or copies of it."""
    counted = [
        parameter.grad
        for parameter in model.parameters()
        if not parameter.ds_pipe_replicated
        and (getattr(parameter, "tensor_model_parallel", False) or parallel_state.get_tensor_model_parallel_rank() == 0)
    ]
    square = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in counted]).pow(2).sum()
    dist.all_reduce(square, group=parallel_state.get_model_parallel_group())
    return float(square.sqrt())


@torch.no_grad()
def clip(model: WholeModel, norm: float, largest: float) -> None:
    """Scale gradients down to `largest`, as DeepSpeed's ZeRO does; 0 leaves them alone."""
    if largest and norm > largest:
        for parameter in model.parameters():
            parameter.grad.mul_(largest / (norm + 1e-6))


def parameter_groups(model: WholeModel, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed, norms and biases are not."""
    parameters = [parameter for _, parameter in model.named_parameters()]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def deepspeed_json(run: Run) -> dict[str, Any]:
    """What DeepSpeed gets: the user's settings, and the switches that the schedule in front of it needs.

    Megatron-Core's schedule accumulates, so to DeepSpeed every call is a whole step of one accumulation.
    """
    ds = run.ds
    bf16 = ds.bf16.enabled
    zero = ds.zero_optimization.model_dump(mode="json")
    if zero["contiguous_gradients"] is None:
        zero["contiguous_gradients"] = ds.zero_optimization.stage >= 2
    out: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": run.micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": ds.gradient_clipping if ds.zero_optimization.stage else 0.0,
        "optimizer": ds.optimizer.model_dump(mode="json"),
        "zero_optimization": zero,
        "bf16": {"enabled": bf16, "immediate_grad_update": bf16},
        "data_types": ds.data_types.model_dump(mode="json"),
        "steps_per_print": None,
    }
    if ds.scheduler is not None:
        params = ds.scheduler.params.model_dump(mode="json", exclude_none=True)
        if ds.scheduler.type != "WarmupLR":
            params["total_num_steps"] = run.steps
        if ds.scheduler.type != "WarmupCosineLR":
            params["warmup_max_lr"] = ds.optimizer.params.lr
        out["scheduler"] = {"type": ds.scheduler.type, "params": params}
    return out
