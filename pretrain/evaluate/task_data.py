"""Documents of a task from files that people have: found by name, formatted, a fixed part of them drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pretrain.errors import UserError
from pretrain.evaluate.documents import Document, Written
from pretrain.evaluate.task_file import TaskFile
from pretrain.evaluate.templates import Fields, edited, fill, fill_each, has_list
from tokenizer.files import COMPRESSED, BadDocument, records_of

ENDS = (".jsonl", *(f".jsonl{end}" for end in COMPRESSED), ".parquet")


def find_data(names: Sequence[str], folder: Path | None) -> Path | None:
    """Return the first file of these names in a folder or below it, None if there is none.

    Raises:
        UserError: there are two of one name.
    """
    if folder is None:
        return None
    for name in names:
        found = sorted(file for end in ENDS for file in folder.rglob(name + end) if file.is_file())
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]}: both are named {name}; keep one of them in {folder}")
        if found:
            return found[0]
    return None


@dataclass(frozen=True)
class TaskData:
    """A task's file with the data it names."""

    name: str
    task: TaskFile
    file: Path
    shots_file: Path | None

    def documents(self, limit: int | None, seed: int, shots: int) -> list[Document | Written]:
        """Format documents: all, or `limit` of them that the seed draws, in the file's order.

        Raises:
            UserError: a file is damaged, empty or not of the task, or there are too few for the examples.
        """
        asked = self._all(self.file)
        others = asked if self._own_shots or not shots or self.shots_file is None else self._all(self.shots_file)
        if limit is not None and limit < len(asked):
            drawn = Random(f"{self.name} {seed}").sample(range(len(asked)), limit)
            asked = [asked[index] for index in sorted(drawn)]
        begin = self.task.introduction
        return [document.after(begin + self._examples(document, others, seed, shots)) for document in asked]

    def _examples(self, document: Document | Written, others: Sequence[Document | Written], seed: int, shots: int) -> str:
        if not shots:
            return ""
        draw, found = Random(f"{self.name} {seed} {document.number} shots"), list[Document | Written]()
        order = draw.sample(range(len(others)), len(others)) if len(others) < 4 * shots + 64 else None
        for attempt in range(len(others) if order else 64 * (shots + 1)):
            other = others[order[attempt] if order else draw.randrange(len(others))]
            is_own = self._own_shots and other.cluster == document.cluster
            if not is_own and all(other is not one for one in found):
                found.append(other)
            if len(found) == shots:
                return "".join(one.answered + self.task.shot_end for one in found)
        raise UserError(
            f"task {self.name}: {self.shots_file or self.file} has fewer than {shots} examples for document {document.number};"
            " take fewer --shots"
        )

    @property
    def _own_shots(self) -> bool:
        """Whether examples are other documents of the same file."""
        return self.shots_file in (None, self.file)

    def _all(self, file: Path) -> list[Document | Written]:
        """Return all documents of a file, as the task puts them."""
        found = [self._formatted(file, number, row) for number, row in enumerate(_rows(file), start=1)]
        several = [len(document.choices) > 1 for document in found if isinstance(document, Document)]
        if len(set(several)) > 1:
            raise UserError(
                f"{file}: document {several.index(not several[0]) + 1}, for task {self.name}: it has"
                f" {'one choice' if several[0] else 'several choices'}, the first {'several' if several[0] else 'one'}; rank one"
                " kind"
            )
        if several and not several[0] and self.task.metric.startswith("accuracy"):
            raise UserError(
                f"{file}: its documents have one choice each, and the metric of task {self.name} is {self.task.metric}; quote"
                " greedy or bits_per_byte"
            )
        return found

    def _formatted(self, file: Path, number: int, row: Fields) -> Document | Written:
        try:
            return formatted(self.task, number, row)
        except ValueError as error:
            raise UserError(f"{file}: document {number}, for task {self.name}: {error}") from None


def formatted(task: TaskFile, number: int, row: Fields) -> Document | Written:
    """Put a document as the task says.

    Raises:
        ValueError: says what is wrong with it.
    """

    def text(template: str) -> str:
        return edited(fill(template, row), task.edit)

    cluster = str(number) if task.cluster is None else fill(task.cluster, row)
    if task.answers is not None:
        assert isinstance(task.context, str), "one context, or there would be choices"
        answers = fill_each(task.answers, row) if has_list(task.answers, row) else [fill(task.answers, row)]
        answers = answers or [task.no_answer for _ in range(1) if task.no_answer is not None]
        if not answers:
            raise ValueError(f"it has no answer in {task.answers}")
        told = edited(f"{fill(task.context, row, data_alone=True)} {answers[0]}", task.edit)
        return Written(text(task.context), tuple(answers), cluster, number, task.between, task.stop, task.max_tokens, told)
    assert task.choices is not None, "one of the two is given"
    if isinstance(task.choices, str):
        choices = tuple(edited(choice, task.edit) for choice in fill_each(task.choices, row))
    else:
        choices = tuple(text(choice) for choice in task.choices)
    context = text(task.context) if isinstance(task.context, str) else tuple(text(one) for one in task.context)
    if not choices:
        raise ValueError(f"it has no choices in {task.choices}")
    for choice in choices:
        if not choice.strip():
            raise ValueError("a choice is empty")
    answer, *also = _answers(task, row, len(choices))
    asked = task.context if isinstance(task.context, str) else task.context[answer]
    if isinstance(task.choices, str):
        says = fill_each(task.choices, row, data_alone=True)[answer]
    else:
        says = fill(task.choices[answer], row, data_alone=True)
    told = edited(f"{fill(asked, row, data_alone=True)} {says}", task.edit)
    return Document(context, choices, answer, cluster, number, task.between, tuple(also), told)


def _answers(task: TaskFile, row: Fields, choices: int) -> list[int]:
    """Return which choices are right, one at least."""
    if isinstance(task.answer, int):
        found = [task.answer]
    else:
        asked = fill_each(task.answer, row) if has_list(task.answer, row) else [fill(task.answer, row)]
        labels: Sequence[object] = fill_each(task.labels, row) if isinstance(task.labels, str) else task.labels
        names = [[str(name) for name in (label if isinstance(label, tuple) else (label,))] for label in labels]
        names = names or [[str(index)] for index in range(choices)]
        for one in asked or [""]:
            if not any(one in among for among in names):
                known = ", ".join(name for among in names for name in among)
                raise ValueError(f'the answer "{one}" is none of {known}' if asked else f"it has no answer in {task.answer}")
        found = [index for one in dict.fromkeys(asked) for index, among in enumerate(names) if one in among]
    if max(found) >= choices:
        raise ValueError(f"the answer is choice {max(found)}, counted from 0, of {choices}")
    return found


def _rows(file: Path) -> list[Fields]:
    try:
        rows: list[Fields] = list(records_of(file))
    except BadDocument as error:
        raise UserError(f"{file}: {error}") from None
    if not rows:
        raise UserError(f"{file}: holds no documents")
    return rows
