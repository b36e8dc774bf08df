"""What DeepSpeed is given: the user's JSON completed, two groups of weights, and Megatron-Core's groups of ranks."""

from typing import Any

import torch
from megatron.core import parallel_state

from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.optim.model import ChunkedModel, is_decayed


def parameter_groups(model: ChunkedModel, weight_decay: float) -> list[dict[str, list[torch.nn.Parameter] | float]]:
    """Split weights into two groups: matrices are decayed, norms and biases are not."""
    parameters = [parameter for _, parameter in model.named_parameters()]
    return [
        {"params": [p for p in parameters if is_decayed(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not is_decayed(p)], "weight_decay": 0.0},
    ]


def deepspeed_json(ds: DeepSpeedConfig) -> dict[str, Any]:
    """Complete the user's settings of a run without ZeRO, the only one that has DeepSpeed's engine, with the switches that the
    schedule in front of it needs.

    Megatron-Core's schedule accumulates, so to DeepSpeed every call is a whole step of one accumulation. The learning rate is set
    before each step (rates.py), so DeepSpeed gets no schedule.
    """
    zero = ds.zero_optimization.model_dump(mode="json")
    zero["contiguous_gradients"] = bool(zero["contiguous_gradients"])
    return {
        "train_micro_batch_size_per_gpu": ds.train_micro_batch_size_per_gpu,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,  # by deepspeed.py
        "optimizer": ds.optimizer.model_dump(mode="json"),
        "zero_optimization": zero,
        "data_types": ds.data_types.model_dump(mode="json"),
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU before every micro-batch
    }


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
