"""The section `model` of a recipe: the shape of the transformer."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.schema import AboveZero, NotNegative, Number, Positive, Strict, Width


class RopeScaling(Strict):
    """Rotary frequencies for longer texts than a model was first trained on, as Hugging Face's `rope_scaling` names them."""

    type: Literal["linear", "llama3", "yarn"]
    """linear divides all frequencies (arXiv 2306.15595), llama3 the low ones (arXiv 2407.21783), yarn the low ones, and sharpens
    attention (arXiv 2309.00071)."""
    factor: Annotated[Number, Field(ge=1)]
    """How many times longer."""
    original_length: Positive | None = None
    """Positions that the model was first trained with; for llama3 and yarn."""
    low_freq_factor: AboveZero = 1.0
    """llama3: frequencies that turn less often than this in original_length positions are divided."""
    high_freq_factor: AboveZero = 4.0
    """llama3: those that turn more often stay; between the two it is a mixture."""
    beta_fast: AboveZero = 32.0
    """yarn: as high_freq_factor."""
    beta_slow: AboveZero = 1.0
    """yarn: as low_freq_factor."""

    @model_validator(mode="after")
    def _whole(self) -> "RopeScaling":
        if self.type != "linear" and self.original_length is None:
            raise ValueError(f"{self.type} needs original_length, the positions that the model was first trained with")
        if self.high_freq_factor <= self.low_freq_factor or self.beta_fast <= self.beta_slow:
            raise ValueError("high_freq_factor must be above low_freq_factor, and beta_fast above beta_slow")
        return self


class Model(Strict):
    """Transformer blocks without dropout; by default a decoder with RMSNorm, rotary positions, SwiGLU and no biases."""

    num_layers: Annotated[int, Field(gt=0, le=10_000)]
    """Transformer layers, all of which exist during the whole run."""
    hidden_size: Width
    """Width of the residual stream."""
    num_attention_heads: Width
    """Must divide hidden_size, unless head_dim is given."""
    num_query_groups: Width | None = None
    """Groups of heads that share keys and values (arXiv 2305.13245); tensor ranks have whole groups. None: every head its own."""
    head_dim: Width | None = None
    """Size of a head; hidden_size over num_attention_heads if None."""
    qk_norm: bool | Literal["whole"] = False
    """RMSNorm of each head's queries and keys before positions are put in, as in Qwen3; whole: of those of all heads together, as
    in OLMo 2."""
    ffn_hidden_size: Width
    """Width of the feed-forward block."""
    vocab_size: Width
    """Pieces of the tokenizer, reserved ones included; checked against it."""
    padded_vocab_size: Width
    """Rows of the embedding. A constant of the recipe, so that no layout changes the model; rows beyond vocab_size
    get no probability."""
    tied_embeddings: bool = True
    """One matrix for the embedding and the output projection. Untied costs memory, and can be better when large."""
    rotary_base: Positive = 10_000
    """Base of the rotary frequencies; raise it for long sequences."""
    rope_scaling: RopeScaling | None = None
    """Rotary frequencies for longer texts; none are changed if left out."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """layernorm has a bias, whatever `biases` says."""
    norm_placement: Literal["before", "after"] = "before"
    """Where a branch is normed: before its matrices, or after them, before it is added to the residual stream, as in OLMo 2
    (arXiv 2501.00656, section 3)."""
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    """swiglu has three matrices, gelu two."""
    biases: bool | Literal["qkv"] = False
    """Whether the layers' matrices have biases; qkv: those of queries, keys and values alone, as in Qwen2."""
    position_embedding: Literal["rope", "learned"] = "rope"
    """learned positions restart with every example of a packed sample."""
    head: Literal["linear", "transform"] = "linear"
    """What comes before the output projection. transform is BERT's: a matrix, GELU and LayerNorm; the projection then has a
    bias."""
    embedding_scale: AboveZero = 1.0
    """Factor on what the embedding gives; Gemma's is the square root of hidden_size."""
    logit_softcap: AboveZero | None = None
    """Logits are c tanh(logit / c), so that none is beyond c, as in Gemma 2 (arXiv 2408.00118)."""
    z_loss: NotNegative = 0.0
    """Factor of the squared logarithm of the softmax's denominator, which is trained down beside the loss and not reported (PaLM,
    arXiv 2204.02311, section 5; 1e-4 there)."""
    norm_epsilon: Annotated[Number, Field(gt=0)] = 1e-6
    """Added to the mean square (rmsnorm) or variance (layernorm)."""
    init_std: Annotated[Number, Field(gt=0)] = 0.02
    """Standard deviation of initial weights; projections back into the residual stream get it over sqrt(2 num_layers)."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """sdpa runs everywhere with a dense mask; flex skips masked blocks, on GPUs only. auto: flex on GPUs, sdpa on CPU."""
    recompute: Literal["none", "layer", "selective"] = "none"
    """What the backward pass makes again, for less memory. layer: all but each layer's input, with a third more operations.
    selective: all but matrix products and attention; nearly as fast as none, with half its memory."""

    @property
    def groups(self) -> int:
        """Groups of heads that share keys and values."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads, and of what attention returns."""
        return self.num_attention_heads * self.head_size

    @property
    def key_size(self) -> int:
        """Width of the keys of all groups, and of the values."""
        return self.groups * self.head_size

    def uses_flex(self, on_gpu: bool) -> bool:
        """Whether attention is flex."""
        return self.attention == "flex" or (self.attention == "auto" and on_gpu)
