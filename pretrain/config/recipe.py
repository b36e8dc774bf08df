"""The recipe: what is trained, on what data, over which ranks, for how long. Read from YAML."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from pretrain.config.model import Model
from pretrain.cost.flops import Shape
from pretrain.data.objectives import OBJECTIVES, Objective, ObjectiveKeys
from pretrain.errors import UserError
from pretrain.schema import Count, Number, Positive, Strict

MACHINE = "machine"
"""Value in place of a path: text, tokenizer and tokens are made from what is installed on the machine."""


def _words(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Source(Strict):
    """One of several bodies of text."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Losses on held-out text are reported by it."""
    train: str
    """Prefix of a .bin/.idx pair written by `python -m tokenizer encode`."""
    valid: str | None = None
    """The same for held-out text; if left out, the last documents of `train` are held out (`data.valid_share`)."""
    weight: Annotated[Number, Field(gt=0)] = 1.0
    """Samples are taken from this source in proportion to its weight."""


class ExampleKind(NamedTuple):
    """Where an example comes from and how it was made."""

    source: str
    denoiser: str
    mode: str | None


class TokenFiles(Strict):
    """Where token files are, and how long samples are."""

    tokenizer: str
    """Folder written by `python -m tokenizer train`, one of Hugging Face's with a tokenizer.json, or "machine"."""
    train: str | None = None
    """Prefix of a .bin/.idx pair written by `python -m tokenizer encode`, or "machine". For several, `sources`."""
    valid: str | None = None
    """The same for held-out text; if left out, the last documents of `train` are held out (`valid_share`)."""
    sources: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    """Several bodies of text, blended by weight, in place of `train`."""
    valid_share: Annotated[Number, Field(gt=0, lt=0.5)] = 0.005
    """Share of a source's tokens, at its end, that is held out where it has no files for that."""
    sequence_length: Annotated[int, Field(ge=16, le=2**24)]
    """Tokens in a packed sample."""


class Data(ObjectiveKeys, TokenFiles):
    """Token files and how batches are made from them."""

    @model_validator(mode="after")
    def _one_way_to_say_what(self) -> "Data":
        if (self.train is None) == (not self.sources):
            raise ValueError("give either train (one source) or sources (several)")
        if self.valid is not None and self.sources:
            raise ValueError("valid goes with train; a source has a valid of its own")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources have the same name: {', '.join(names)}")
        return self

    @property
    def made_as(self) -> type[Objective]:
        """The class of the objective."""
        return OBJECTIVES[self.objective]

    @property
    def kinds(self) -> tuple["ExampleKind", ...]:
        """Everything that examples are told apart by in the losses on held-out text, source by source."""
        made_by = self.made_as.kinds(self)
        return tuple(ExampleKind(source.name, *how) for source in self.all_sources for how in made_by)

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """The sources, of which there is one where `train` names it."""
        if self.sources:
            return self.sources
        assert self.train is not None, "one of the two is given"
        return (Source(name="train", train=self.train, valid=self.valid),)


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
    """Everything about a run but how to optimise, which is in the DeepSpeed JSON."""

    name: str | None = None
    """Name of the run, in titles. None: that of the recipe's file."""
    model: Model
    data: Data
    parallel: Parallel = Parallel()
    init_from: str | None = None
    """Folder of Hugging Face's whose weights the run begins with: Llama, Mistral, Qwen2, Qwen3, OLMo 2 or MegatronBERT, in
    safetensors.
    Weights are drawn if left out. data.tokenizer must be the folder's."""
    export_as: str | None = None
    """Class of transformers that `export` writes where several compute the same, as MistralForCausalLM; Llama's if left out."""
    steps: Positive
    """Length of the run; schedules are laid out over it."""
    seed: Count = 0
    """Decides initial weights, data order and, unless path_seed is given, paths."""
    save_every: Positive = 1000
    """Steps between checkpoints; the last step is always saved."""
    save_async: bool = True
    """Write checkpoints while training continues. The loop waits only for the copy out of device memory, which takes 12 bytes of
    host memory for every parameter that a rank keeps moments of."""
    on_save_failure: Literal["stop", "continue"] = "stop"
    """When a checkpoint cannot be written: stop the run, or warn, keep the older ones and continue. The last
    one of a process must be written."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept."""
    keep_every: Positive | None = None
    """Checkpoints of steps that this number divides are kept as well, for ever."""
    eval_every: Positive = 1000
    """Steps between evaluations on held-out text; the last step is always evaluated."""
    eval_samples: Positive = 64
    """Packed samples of held-out text in an evaluation."""
    eval_parts: bool = False
    """After the last step, evaluate parts of the model too: its first n layers for every n, and all without every second layer.
    Shows what early exit and layer skipping would lose, for about half as many evaluations as there are layers."""
    eval_tasks: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_words)] = ()
    """Tasks that are scored during training: tiny, small, names, or files (.yaml); `python -m pretrain evaluate --list` shows
    them. Those whose answers are written are left to `evaluate`."""
    eval_tasks_data: str | None = None
    """Folder of the tasks' data."""
    eval_tasks_every: Positive | None = None
    """Steps between scores; after the last step alone if left out."""
    eval_tasks_share: Annotated[Number, Field(gt=0, le=1)] = 0.05
    """Operations for tasks, as a share of those of the steps in between with all layers: decides how many documents are put."""
    log_every: Positive = 1
    """Steps between lines in a log file; a terminal shows every step."""
    log_to: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], Field(strict=False), BeforeValidator(_words)] = (
        "tensorboard",
    )
    """Dashboards beside metrics.jsonl; wandb and trackio are installed by requirements/dashboards.txt. None of them can stop a
    run."""
    watchdog_seconds: Annotated[Number, Field(gt=0)] = 600.0
    """With several ranks: the longest that a step or an evaluation may take. Then every rank writes its stack to RUN/stacks/ and
    ends."""
    deterministic: bool = False
    """On GPUs: use only kernels that give the same bits every time, so that a run that was interrupted has the losses of one that
    was not, bit for bit; slower. On a CPU it is so in any case."""
    compile: Literal["auto", "none", "layers"] = "auto"
    """layers: torch.compile makes fewer, larger kernels of a layer and of the loss. A minute at the start; steps are faster, and
    losses differ in the last digits. auto: on GPUs, not on CPU."""
    precision: Literal["fp8"] | None = None
    """fp8: the layers' matrix products in 8 bits a number, on GPUs that have such (Ada, Hopper, Blackwell); all else as the
    JSON says, which must have bf16. Losses differ. None: all as the JSON says."""
    threads: Positive | None = None
    """CPU threads of a rank; on CPU they decide the order of sums. None: OMP_NUM_THREADS if it is set; else the cores
    divided among the ranks of a node, or what SLURM gives a task."""

    def compiles(self, on_gpu: bool) -> bool:
        """Whether layers and the loss are compiled."""
        return self.compile == "layers" or (self.compile == "auto" and on_gpu)

    @property
    def shape(self) -> Shape:
        m = self.model
        return Shape(
            m.num_layers, m.hidden_size, m.ffn_hidden_size, self.data.sequence_length, m.padded_vocab_size,
            gated=m.feed_forward == "swiglu", transform=m.head == "transform", queries=m.query_size, keys=m.key_size,
            targets=self.data.made_as.target_share(self.data, self.data.sequence_length),
        )  # fmt: skip


def find_recipe(name: str) -> Path:
    """A recipe's file: a name in pretrain/recipes/, or a path to a YAML file.

    Raises:
        UserError: neither exists.
    """
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(f'recipe "{name}": no such file; those that are here are {", ".join(shipped)}')
    if path.with_name(f"{path.name}.yaml").is_file():
        raise UserError(f'recipe "{name}": did you mean the file {name}.yaml?')
    close = difflib.get_close_matches(name, shipped, 1)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise UserError(f'recipe "{name}" is neither a YAML file nor one of {", ".join(shipped)}{hint}')


def shipped_recipes() -> dict[str, Path]:
    """Return files of the recipes that are part of the package, by name."""
    return {p.stem: p for p in sorted(Path(str(files("pretrain"))).joinpath("recipes").glob("*.yaml"))}
