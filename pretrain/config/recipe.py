"""The recipe: what is trained, on what data, over which ranks, for how long. Read from YAML."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.strict import Strict
from pretrain.errors import UserError
from pretrain.subnetwork.flops import Shape

Positive = Annotated[int, Field(gt=0, lt=2**53)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Model(Strict):
    """A decoder of pre-norm blocks: RMSNorm, rotary positions, SwiGLU, no biases, no dropout."""

    num_layers: Annotated[int, Field(gt=0, le=10_000)]
    """Transformer layers, all of which exist during the whole run."""
    hidden_size: Positive
    """Width of the residual stream."""
    num_attention_heads: Positive
    """Must divide hidden_size."""
    ffn_hidden_size: Positive
    """Width of the feed-forward block."""
    vocab_size: Positive
    """Pieces of the tokenizer, reserved ones included; checked against it."""
    padded_vocab_size: Positive
    """Rows of the embedding. A constant of the recipe, so that no layout changes the model; rows beyond vocab_size
    get no probability."""
    tied_embeddings: bool = True
    """One matrix for the embedding and the output projection. Untied costs memory, and can be better when large."""
    rotary_base: Positive = 10_000
    """Base of the rotary frequencies; raise it for long sequences."""
    norm_epsilon: Annotated[Number, Field(gt=0)] = 1e-6
    """Added to the mean square in RMSNorm."""
    init_std: Annotated[Number, Field(gt=0)] = 0.02
    """Standard deviation of initial weights; projections back into the residual stream get it over sqrt(2 num_layers)."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """sdpa runs everywhere with a dense mask; flex skips masked blocks, on GPUs only."""
    recompute: Literal["none", "layer"] = "none"
    """layer: keep only each layer's input and run the layer again in the backward pass; less memory, a third more
    operations."""


class Denoiser(Strict):
    """One way to make an example. R and X of UL2 corrupt spans, S cuts the text in two (arXiv 2205.05131, table 1)."""

    kind: Literal["span", "prefix"]
    """span: masked spans are the target. prefix: the end of the text is the target."""
    mode: Literal["[NLU]", "[NLG]", "[S2S]"]
    """The token that tells the model which denoiser made the example."""
    mean_span: Annotated[Number, Field(ge=1)] = 3.0
    """Mean length of a masked span in tokens; span only."""
    rate: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    """Share of the text that is masked (span), mean share that is the target (prefix)."""
    weight: Annotated[Number, Field(gt=0)] = 1.0
    """Examples are made by this denoiser in proportion to its weight."""

    @model_validator(mode="after")
    def _mean_can_be_had(self) -> "Denoiser":
        if self.kind == "prefix" and self.rate > 0.5:
            raise ValueError("a prefix denoiser draws its target uniformly, so its mean share cannot exceed 0.5")
        return self


UL2 = tuple(
    [Denoiser(kind="span", mode="[NLU]", mean_span=span, rate=0.15) for span in (3.0, 8.0)]
    + [Denoiser(kind="span", mode="[NLG]", mean_span=s, rate=r) for s, r in ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))]
    + [Denoiser(kind="prefix", mode="[S2S]", rate=0.25)]
)
"""The original mixture: uniform over seven denoisers."""

MACHINE = "machine"
"""In place of a path: text, tokenizer and tokens that the machine makes from what is installed on it."""


class Data(Strict):
    """Token files and how batches are made from them."""

    objective: Literal["ul2"] = "ul2"
    """ul2: prefix and target in one decoder, loss on the target."""
    tokenizer: str
    """Folder written by `python -m tokenizer train`, or "machine"."""
    train: str
    """Prefix of a .bin/.idx pair written by `python -m tokenizer encode`, or "machine"."""
    valid: str
    """The same for held-out text."""
    sequence_length: Annotated[int, Field(ge=16)]
    """Tokens in a packed sample."""
    max_example_tokens: Annotated[int, Field(ge=8)] = 512
    """Longest stretch of text that one example is made from."""
    denoisers: Annotated[tuple[Denoiser, ...], Field(min_length=1, strict=False)] = UL2
    """What examples are made by, UL2's seven by default."""


class Parallel(Strict):
    """The layout of the ranks."""

    tensor: Positive = 1
    """Ranks over which every matrix is split."""
    pipeline: Positive = 1
    """Ranks over which the layers are split."""
    virtual: Positive = 1
    """Chunks of layers on each pipeline rank; more than 1 interleaves them."""
    sequence: bool = False
    """Split norms and residuals over the tensor ranks too (sequence parallelism)."""

    @property
    def model_ranks(self) -> int:
        return self.tensor * self.pipeline


class Recipe(Strict):
    """Everything about a run but how to optimise, which stands in the DeepSpeed JSON."""

    model: Model
    data: Data
    parallel: Parallel = Parallel()
    steps: Positive
    """Length of the run; schedules are laid out over it."""
    seed: Count = 0
    """Decides initial weights, data order and, unless path_seed is given, paths."""
    save_every: Positive = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept."""
    eval_every: Positive = 1000
    """Steps between evaluations on held-out text; the last step is always evaluated."""
    eval_samples: Positive = 64
    """Packed samples of held-out text in an evaluation."""
    log_every: Positive = 1
    """Steps between lines in a log file; a terminal shows every step."""
    threads: Positive | None = None
    """CPU threads of a rank; on CPU they decide the order of sums. None: the cores divided among the node's ranks."""

    @property
    def shape(self) -> Shape:
        m = self.model
        return Shape(m.num_layers, m.hidden_size, m.ffn_hidden_size, self.data.sequence_length, m.padded_vocab_size)


def find_recipe(name: str) -> Path:
    """A recipe's file: a name in pretrain/recipes/, or a path to a YAML file.

    Raises:
        UserError: neither exists.
    """
    shipped = {p.stem: p for p in sorted(Path(str(files("pretrain"))).joinpath("recipes").glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise UserError(f'recipe "{name}" is neither a YAML file nor one of {", ".join(shipped)}')
