"""The DeepSpeed JSON: how to optimise. DeepSpeed's vocabulary, the part of it that this program honours.

DeepSpeed ignores keys that it does not know and then trains with something else; here each is an error. So is a key
that DeepSpeed knows and this program does not pass on, with the reason: a setting that does nothing misleads.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, FieldSerializationInfo, field_serializer, model_validator

from pretrain.config.foreign import FORMER, TOP_LEVEL_KEYS, ZERO_KEYS, asks_for_nothing
from pretrain.schema import AboveZero, NotNegative, Number, Positive, Share, Strict
from pretrain.subnetwork.methods import FullKeys, MethodKeys, ProgressiveSubnetwork, written

Auto = Literal["auto"]
"""A value as Hugging Face's users know it: it follows from the run and need not be written."""
Beta = Annotated[Number, Field(ge=0, lt=1)]
Elements = Annotated[int, Field(gt=0), BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]
"""A whole number that DeepSpeed's users like to write as 5e8."""


class AdamWParams(Strict):
    """Arguments of torch.optim.AdamW. Norms and biases are never decayed."""

    lr: AboveZero
    """Highest learning rate; the scheduler scales it."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: AboveZero = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegative = 0.01
    """Decoupled decay of matrices. It also acts on layers that a step skips."""
    torch_adam: Literal[True] = True
    """PyTorch's AdamW: no CUDA extension is compiled when a job starts."""
    fused: bool = True
    """One kernel for all parameters."""


def _adamw_alone(name: Any) -> Any:
    if name != "AdamW":
        raise ValueError(
            'only "AdamW": under "skipped_update" exact what a sleeping layer misses is made up for by replaying its updates'
        )
    return name


class Optimizer(Strict):
    """The optimizer around which DeepSpeed shards."""

    type: Annotated[Literal["AdamW"], BeforeValidator(_adamw_alone)]
    """AdamW alone: its updates are counted by layer, and replayed under `skipped_update` exact."""
    params: AdamWParams
    """Its arguments."""


class SchedulerParams(Strict):
    """Arguments of DeepSpeed's learning-rate schedules; which of them a type takes is checked."""

    total_num_steps: Positive | Auto | None = None
    """Follows from the run's length; leave it out or write "auto"."""
    warmup_num_steps: Positive = 1000
    """Steps until the highest learning rate."""
    warmup_type: Literal["log", "linear"] = "log"
    """Shape of the warm-up; DeepSpeed's default is log."""
    warmup_min_lr: NotNegative | None = None
    """WarmupLR and WarmupDecayLR: learning rate before the warm-up."""
    warmup_max_lr: AboveZero | Auto | None = None
    """WarmupLR and WarmupDecayLR: follows from the optimizer's lr; leave it out or write "auto"."""
    warmup_min_ratio: Share | None = None
    """WarmupCosineLR: share of lr before the warm-up."""
    cos_min_ratio: Share | None = None
    """WarmupCosineLR: share of lr at the end."""
    decay_num_steps: Positive | None = None
    """WarmupStableDecay: steps of the decay, the last of the run."""
    decay_type: Literal["linear", "cosine", "1-sqrt"] | None = None
    """WarmupStableDecay: shape of the decay; linear if left out."""
    decay_min_ratio: Share | None = None
    """WarmupStableDecay: share of lr that the decay goes to; 0 if left out."""


DECAY = ("decay_num_steps", "decay_type", "decay_min_ratio")
"""Arguments of WarmupStableDecay alone."""


class Scheduler(Strict):
    """DeepSpeed's learning-rate schedules, and one more. Step n of a run uses value n of DeepSpeed's, so that no step has a rate
    of 0."""

    type: Literal["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "WarmupStableDecay"]
    """Constant, linear decay or cosine decay after a warm-up. WarmupStableDecay, which DeepSpeed does not have: constant until
    the last steps, and a decay over these."""
    params: SchedulerParams = SchedulerParams()
    """Its arguments."""

    @model_validator(mode="after")
    def _arguments_fit(self) -> "Scheduler":
        other = {
            "WarmupCosineLR": ("warmup_min_lr", "warmup_max_lr", *DECAY),
            "WarmupDecayLR": ("warmup_min_ratio", "cos_min_ratio", *DECAY),
            "WarmupLR": ("warmup_min_ratio", "cos_min_ratio", "total_num_steps", *DECAY),
            "WarmupStableDecay": ("warmup_min_lr", "warmup_max_lr", "cos_min_ratio"),
        }[self.type]
        wrong = [name for name in other if getattr(self.params, name) is not None]
        if wrong:
            raise ValueError(
                f'"{wrong[0]}" is not an argument of {self.type}; remove it, or give the whole block of the scheduler'
            )
        if self.type == "WarmupStableDecay" and self.params.decay_num_steps is None:
            raise ValueError(
                "type WarmupStableDecay needs params.decay_num_steps, the steps of its decay; a tenth of the run is usual"
            )
        return self


class Bf16(Strict):
    """bfloat16 weights and activations with fp32 master weights, moments and gradient sums."""

    enabled: bool = False
    """false: everything in fp32."""


class DataTypes(Strict):
    """Types of what DeepSpeed keeps."""

    grad_accum_dtype: Literal["fp32"] = "fp32"
    """A rank sums the gradients of its micro-batches in fp32, always."""


def _without_what_is_off(data: Any) -> Any:
    """Drop keys that ask for nothing."""
    return {k: v for k, v in data.items() if not asks_for_nothing(k, v)} if isinstance(data, dict) else data


class Zero(Strict):
    """What is sharded over data-parallel ranks."""

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """0: nothing; 1: optimizer state; 2: and gradients; 3: and weights."""
    reduce_bucket_size: Elements = 500_000_000
    """Elements that are reduced at a time; smaller takes less memory."""
    allgather_bucket_size: Elements = 500_000_000
    """Elements that are gathered at a time."""
    contiguous_gradients: bool | None = None
    """Stage 0: copy gradients into one buffer before they are reduced; false if left out, because all gradients exist before
    reduction begins, and the copy only costs time (docs/decisions.md). Always so in stages 1 to 3."""
    reduce_scatter: bool = True
    """Reduce each gradient to its owner only; false: to all, which sends twice as much (stages 1 to 3)."""
    allgather_partitions: bool = True
    """Gather updated weights with all-gather instead of broadcasts."""
    round_robin_gradients: bool = False
    """Spread copies of gradients over ranks; only with offloading."""
    overlap_comm: bool = False
    """Stages 1 to 3: sum a layer's gradients over replicas while the backward pass of others goes on."""

    foreign: ClassVar[dict[str, str]] = ZERO_KEYS

    _switched_off = model_validator(mode="before")(_without_what_is_off)


class DeepSpeedConfig(Strict):
    """One file of ds_configs/."""

    train_batch_size: Positive
    """Packed samples in a step, over all ranks."""
    train_micro_batch_size_per_gpu: Positive
    """Packed samples that go through a rank at a time: as many as memory allows."""
    gradient_accumulation_steps: Positive | Auto = "auto"
    """Follows from the batch sizes and the ranks. A number is checked against them."""
    gradient_clipping: NotNegative = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    optimizer: Optimizer
    """What updates the weights."""
    scheduler: Scheduler | None = None
    """Learning rate over the run; constant if left out."""
    bf16: Bf16 = Bf16()
    """Precision."""
    data_types: DataTypes = DataTypes()
    """Types of what DeepSpeed keeps."""
    communication_data_type: Literal["fp32", "bf16"] = "fp32"
    """Stages 1 to 3: type in which gradients are sent and summed over replicas."""
    zero_optimization: Zero = Zero()
    """Sharding."""
    progressive_subnetwork: ProgressiveSubnetwork = FullKeys(method="full")
    """Which layers a step trains; all of them if left out. A block of this project, after DeepSpeed's former
    progressive_layer_drop; its keys depend on its method."""

    @field_serializer("progressive_subnetwork")
    def _with_all_keys(self, block: MethodKeys, info: FieldSerializationInfo) -> dict[str, Any]:
        keys = written(block, info.mode)
        return {key: value for key, value in keys.items() if value is not None} if info.exclude_none else keys

    _switched_off = model_validator(mode="before")(_without_what_is_off)

    @model_validator(mode="after")
    def _stage_0_updates_all(self) -> "DeepSpeedConfig":
        """DeepSpeed's AdamW, which stage 0 has, keeps one count of updates for all layers: there the default is another."""
        block = self.progressive_subnetwork
        if self.zero_optimization.stage == 0 and "skipped_update" not in block.model_fields_set:
            object.__setattr__(self, "progressive_subnetwork", block.model_copy(update={"skipped_update": "exact"}))
        return self

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or FORMER not in data:
            return data
        block, rest = data[FORMER], {key: value for key, value in data.items() if key != FORMER}
        if "progressive_subnetwork" in rest:
            raise ValueError(f'"{FORMER}" and "progressive_subnetwork" say the same; keep the latter')
        if not isinstance(block, dict) or block.keys() - {"enabled", "theta", "gamma"}:
            raise ValueError(f'"{FORMER}" has the keys enabled, theta and gamma')
        settings = {key: block[key] for key in ("theta", "gamma") if key in block}
        return {
            **rest,
            "progressive_subnetwork": {"method": "pld", **settings} if block.get("enabled", True) else {"method": "full"},
        }

    foreign: ClassVar[dict[str, str]] = TOP_LEVEL_KEYS
