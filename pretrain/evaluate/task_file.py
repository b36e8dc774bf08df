"""A task as data: a YAML file that says what its documents are, how each is put, and how it counts."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pretrain.config.strict import parse, read_yaml
from pretrain.evaluate.templates import EDITS, check_template
from pretrain.schema import Positive, Share, Strict

Tier = Literal["tiny", "small", "paper"]
TIERS: tuple[Tier, ...] = ("tiny", "small", "paper")
MetricName = Literal["accuracy", "accuracy_per_byte", "greedy", "bits_per_byte", "exact_match", "f1"]
Average = Literal["documents", "clusters", "bytes"]
Template = Annotated[str, AfterValidator(check_template)]
Label = str | int
Labels = Annotated[tuple[Label, ...], Field(strict=False)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Names = Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]


class TaskFile(Strict):
    """The keys of a task's file."""

    about: str
    """What is asked, in a few words."""
    version: Positive
    """Raised whenever a change gives other numbers: rows of different versions are not compared."""
    tiers: Annotated[tuple[Tier, ...], Field(strict=False)] = ()
    """Which of the named sets the task is in."""
    data: Names
    """Names of files with documents, without ends (.jsonl, also .gz, .xz, .zst; .parquet); the first that is there is used."""
    shots_from: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """The same for answered examples; if left out, or if none is there, these are other documents of `data`."""
    source: str
    """Where people get the data, and under which name to save it."""
    licence: str
    """As the data's authors state it."""
    format: str
    """Whose way of asking this is, and in what it differs."""
    introduction: str = ""
    """Text before the first example or question."""
    context: Template | Annotated[tuple[Template, ...], Field(strict=False)]
    """What is read; several, one for each choice, where the choices are in the middle of a text."""
    between: str = " "
    """What joins a context with its continuation."""
    choices: Template | Annotated[tuple[Template, ...], Field(strict=False)] | None = None
    """Continuations that are ranked; or one, with a placeholder of a field that is a list."""
    answer: Annotated[int, Field(ge=0)] | Template = 0
    """Which choice is right: its number from 0, or a text that is one of `labels`, or, without those, a number from 0. Several
    are right if it is a placeholder of a list; bits per byte are then those of the first."""
    labels: Annotated[tuple[Label | Labels, ...], Field(strict=False)] | Template = ()
    """Names of the choices in the data, in their order (several for one if files differ); or a placeholder of a list of them."""
    answers: Template | None = None
    """For tasks whose answer is written, not chosen: what counts as right, a placeholder of a text or of a list of texts."""
    no_answer: str | None = None
    """What is to be written where the data has no answer."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ("\n",)
    """Texts that end what is written."""
    max_tokens: Positive = 32
    """Most tokens that are written."""
    edit: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Edits of every text that has been put together."""
    shot_end: str = "\n\n"
    """What stands after each answered example."""
    metric: MetricName
    """The one that is quoted first."""
    chance: Share | None
    """Its value for whoever knows nothing; null if documents differ in it."""
    cluster: Template | None = None
    """What documents that are not independent have in common, as the passage they ask about."""
    average: Average = "documents"
    """clusters: a mean of the clusters' means. bytes: all bits over all bytes; bits per byte are then the only metric."""

    @model_validator(mode="after")
    def _one_kind(self) -> "TaskFile":
        if (self.choices is None) == (self.answers is None):
            raise ValueError("give either choices, which are ranked, or answers, which are written")
        for context in (self.context,) if isinstance(self.context, str) else self.context:
            if context.endswith(" ") and self.between.startswith(" "):
                raise ValueError(
                    "context and its continuation would be two spaces apart; end the context without one, or between: ''"
                )
        if isinstance(self.context, tuple) and (not isinstance(self.choices, tuple) or len(self.choices) != len(self.context)):
            raise ValueError("several contexts need as many choices")
        written = ("exact_match", "f1")
        if (self.metric in written) != (self.answers is not None):
            raise ValueError(f"metric {self.metric} is for {'answers' if self.metric in written else 'choices'}")
        if self.average == "bytes" and self.metric != "bits_per_byte":
            raise ValueError(f"average: bytes is for bits_per_byte, not for {self.metric}")
        for name in self.edit:
            if name not in EDITS:
                raise ValueError(f'no edit is called "{name}"; there are {", ".join(EDITS)}')
        return self


def shipped() -> dict[str, Path]:
    """Return the files that come with the project, by the task's name."""
    folder = Path(str(files("pretrain"))) / "evaluate/tasks"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def read_task(file: Path) -> TaskFile:
    """Read a task's file.

    Raises:
        UserError: the first thing that is wrong.
    """
    return parse(TaskFile, read_yaml(file), str(file))
