"""The tasks that there are: made from a seed, described by files, and a run's own held-out text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.run import Run
from pretrain.config.strict import did_you_mean
from pretrain.data.loader import streams_of
from pretrain.errors import UserError
from pretrain.evaluate.documents import Document, Written
from pretrain.evaluate.generated import induction_copying, variable_assignment
from pretrain.evaluate.held_out import HeldOut
from pretrain.evaluate.measure import Asking, Posed, Questions, pose
from pretrain.evaluate.task_data import TaskData, find_data
from pretrain.evaluate.task_file import TIERS, Average, MetricName, TaskFile, Tier, read_task, shipped
from pretrain.files import sha256
from pretrain.generate.write import Prompt
from tokenizer.pieces import Tokenizer

GENERATED = 500
"""Documents that are made of a task unless a limit says otherwise."""
HELD_OUT = "held_out"


@dataclass(frozen=True)
class Generated:
    """Documents from a seed."""

    make: Callable[[int, int, int], list[Document]]
    """From how many, a seed, and answered examples before each."""

    def posed(self, asking: Asking, tokenizer: Tokenizer, length: int) -> tuple[list[Posed], int]:
        documents = self.make(asking.limit or GENERATED, asking.seed, asking.shots)
        return pose(documents, tokenizer, asking.mode, length)


@dataclass(frozen=True)
class FromData:
    """Documents from a file."""

    data: TaskData

    def texts(self, asking: Asking) -> dict[int, str]:
        """Return what the data says of each document, question and answer without the words of the format, by its number."""
        documents = self.data.documents(asking.limit, asking.seed, 0)
        return {document.number: document.told for document in documents}

    def examples(self, asking: Asking) -> str | None:
        """Return the name of the file that answered examples are drawn from; None without examples."""
        return (self.data.shots_file or self.data.file).name if asking.shots else None

    @property
    def are_written(self) -> bool:
        """Whether answers are written by the model, not ranked."""
        return self.data.task.answers is not None

    def prompts(self, asking: Asking, tokenizer: Tokenizer, length: int) -> tuple[list[tuple[Written, Prompt]], int]:
        """Return what is to be continued, where it and an answer fit into `length` positions, and how many do not."""
        documents = self.data.documents(asking.limit, asking.seed, asking.shots)
        written = [document for document in documents if isinstance(document, Written)]
        start, found = () if asking.mode is None else (tokenizer.id(asking.mode),), []
        for document, ids in zip(written, tokenizer.encode([document.context for document in written])):
            tokens = (*start, *map(int, ids))
            prompt = Prompt(tokens, asking.attention == "prefix", document.max_tokens, document.stop)
            if tokens and prompt.longest <= length:
                found.append((document, prompt))
        return found, len(written) - len(found)

    def posed(self, asking: Asking, tokenizer: Tokenizer, length: int) -> tuple[list[Posed], int]:
        documents = self.data.documents(asking.limit, asking.seed, asking.shots)
        ranked = [document for document in documents if isinstance(document, Document)]
        return pose(ranked, tokenizer, asking.mode, length)


@dataclass(frozen=True)
class Task:
    """A task that can be put to a model, or says what it lacks."""

    name: str
    about: str
    version: int
    tiers: tuple[Tier, ...]
    metric: MetricName
    """The one that is quoted first."""
    chance: float | None
    """Its value for whoever knows nothing."""
    origin: str
    """Where its documents are from, and their licence."""
    questions: Questions | None = None
    """None where its data is missing."""
    average: Average = "documents"
    file: Path | None = None
    """Documents, of a task that has data."""
    source: TaskFile | None = None
    lack: str = ""
    """Why there are no questions, where that is not data that people have to get."""

    def checksum(self) -> str:
        """Return the checksum of the task's data."""
        assert self.file is not None, "asked of tasks that have data"
        return sha256(self.file)


def _assignment(depth: int) -> Task:
    about = f"the value of a variable, copied {depth} times" if depth else "the value of one of five variables"
    make = Generated(lambda count, seed, shots: variable_assignment(count, seed, depth, shots))
    return Task(f"variable_assignment_{depth}", about, 1, ("tiny", "small"), "accuracy", 1 / 5, "generated, no data needed", make)


def generated_tasks() -> list[Task]:
    """Return the tasks that are made from a seed."""
    about, copying = "the next of ten words, of which five are said again", Generated(induction_copying)
    return [
        Task("induction_copying", about, 1, ("tiny", "small"), "accuracy", 1 / 10, "generated, no data needed", copying),
        *(_assignment(depth) for depth in range(3)),
    ]


def held_out_tasks(run: Run | None) -> list[Task]:
    """Return a task for the held-out text of each source of a run; without questions where that is not on this machine."""
    try:
        streams = streams_of(run) if run is not None else {}
    except UserError as error:
        return [_held_out(HELD_OUT, None, str(error))]
    if run is None:
        return [_held_out(HELD_OUT, None, "needs a run")]
    return [
        _held_out(f"{HELD_OUT}_{name}" if len(run.recipe.data.all_sources) > 1 else HELD_OUT, HeldOut(stream))
        for name, (_, stream) in streams.items()
    ]


def _held_out(name: str, questions: HeldOut | None, lack: str = "") -> Task:
    about, origin = "the run's own held-out text", "token files of the run"
    return Task(name, about, 2, ("tiny", "small"), "bits_per_byte", None, origin, questions, "bytes", lack=lack)


def file_task(name: str, file: Path, folder: Path | None) -> Task:
    """Return the task that a file describes, with its data if that is in `folder`.

    Raises:
        UserError: the first thing that is wrong with the file.
    """
    task = read_task(file)
    data = find_data(task.data, folder)
    questions = None
    if data is not None:
        questions = FromData(TaskData(name, task, data, find_data(task.shots_from, folder) if task.shots_from else None))
    return Task(
        name, task.about, task.version, task.tiers, task.metric, task.chance, f"{task.source}; licence: {task.licence}",
        questions, task.average, data, task,
    )  # fmt: skip


def catalogue(run: Run | None, folder: Path | None, data_key: str = "--data") -> dict[str, Task]:
    """Return all tasks that come with the project, and those of a run's held-out text, by name.

    Args:
        folder: where data is, here or below.
        data_key: how the user names that folder.

    Raises:
        UserError: there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"{data_key} {folder}: no such folder")
    held_out = held_out_tasks(run)
    files = [file_task(name, file, folder) for name, file in shipped().items()]
    return {task.name: task for task in (*generated_tasks(), *held_out, *files)}


def choose(words: Sequence[str], tasks: Mapping[str, Task], folder: Path | None, key: str = "--tasks") -> list[Task]:
    """Return what is asked for by names of tiers, tasks and files; of a tier those of which there is data.

    Args:
        key: how the user names the words.

    Raises:
        UserError: a word is none of these, or the data of a task that is asked for by name is missing.
    """
    found: dict[str, Task] = {}
    for word in dict.fromkeys(words):
        if word in TIERS:
            found |= {task.name: task for task in tasks.values() if word in task.tiers and task.questions is not None}
            continue
        if word.endswith((".yaml", ".yml")):
            name = Path(word).stem
            if name in tasks:
                raise UserError(f"{key} {word}: a task that comes along is called {name}; give the file another name")
            if name in found:
                raise UserError(f"{key} {word}: another file is called {name}, too; give one of them another name")
            task = file_task(name, Path(word), folder)
        elif word in tasks or word == HELD_OUT:
            names = [name for name in tasks if name == word or (word == HELD_OUT and name.startswith(f"{HELD_OUT}_"))]
            found |= {name: tasks[name] for name in names[:-1]}
            task = tasks[names[-1]]
        else:
            raise UserError(f"{key} {word}: no tier, file or task is called so{did_you_mean(word, [*TIERS, *tasks])}")
        if task.questions is None:
            raise UserError(f"task {task.name}: {lack_of(task, folder)}")
        found[task.name] = task
    return list(found.values())


def lacking(words: Sequence[str], tasks: Mapping[str, Task]) -> list[str]:
    """Return the tasks of the tiers among these words that have no data."""
    return [task.name for task in tasks.values() if task.questions is None and any(word in task.tiers for word in words)]


def lack_of(task: Task, folder: Path | None) -> str:
    """Say which data of a task is missing and where people get it."""
    if task.source is None:
        return task.lack
    where = f"is not in {folder}" if folder is not None else "is missing; name its folder with --data"
    return f"{' or '.join(task.source.data)} (.jsonl or .parquet) {where}. {task.origin}"
