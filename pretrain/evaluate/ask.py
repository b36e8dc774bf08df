"""One task put to a loaded model, by all ranks together."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from pretrain.evaluate.answers import exact_match, f1
from pretrain.evaluate.catalogue import FromData, Task
from pretrain.evaluate.contamination import Overlap
from pretrain.evaluate.documents import Written
from pretrain.evaluate.load import Loaded
from pretrain.evaluate.measure import Asking, Outcome, checksum_of, measure
from pretrain.evaluate.rows import EvalRow, Mean, Seen
from pretrain.evaluate.task_file import Average
from pretrain.generate.write import Prompt, until, write
from pretrain.ranks.process import Ranks
from pretrain.versions import HOME, code_sha256, commit, versions
from tokenizer.pieces import EOS


def ask(model: Loaded, task: Task, asking: Asking, ranks: Ranks) -> tuple[EvalRow, Outcome | None]:
    """Put a task to a model, on every rank; None in place of an outcome if all documents are too long.

    Raises:
        UserError: data is damaged, or does not fit the task or the tokenizer.
    """
    length, questions = model.run.recipe.data.sequence_length, task.questions
    assert questions is not None, "tasks without data are not asked"
    outcome: Outcome | None = None
    if isinstance(questions, FromData) and questions.are_written:
        with ranks.all_or_none():
            prompts, skipped = questions.prompts(asking, model.tokenizer, length)
        if prompts:
            outcome = _written(model, prompts, skipped, task.average, ranks)
    else:
        with ranks.all_or_none():
            posed, skipped = questions.posed(asking, model.tokenizer, length)
        if posed:
            outcome = measure(model.engine, posed, skipped, asking.attention == "prefix", task.average)
    return row_of(model, task, asking, outcome, skipped), outcome


def _written(model: Loaded, prompts: Sequence[tuple[Written, Prompt]], skipped: int, average: Average, ranks: Ranks) -> Outcome:
    """Let a model write answers, and hold them against those that count as right."""
    end = model.tokenizer.id(EOS)
    found = write(model.engine, ranks, model.tokenizer, [prompt for _, prompt in prompts], end)
    texts = [until(model.tokenizer.text(ids), document.stop).strip() for ids, (document, _) in zip(found, prompts)]
    values = {
        "exact_match": [exact_match(text, document.answers) for text, (document, _) in zip(texts, prompts)],
        "f1": [f1(text, document.answers) for text, (document, _) in zip(texts, prompts)],
    }
    return Outcome(
        np.array([document.number for document, _ in prompts]),
        tuple(document.cluster for document, _ in prompts),
        {name: np.array(numbers) for name, numbers in values.items()},
        skipped,
        checksum_of(
            (prompt.tokens, prompt.max_tokens, document.answers, document.stop, document.cluster) for document, prompt in prompts
        ),
        average,
    )


def with_seen(row: EvalRow, outcome: Outcome, found: Overlap) -> EvalRow:
    """Return a row that says how many documents the training text holds, and what is left without them."""
    left = outcome.without(found.seen)
    means = {name: left.metric(name) for name in left.values} if len(left.numbers) else {}
    asked = frozenset(outcome.numbers.tolist())
    without = {name: Mean(mean=mean.mean, error=mean.error) for name, mean in means.items()}
    return row.model_copy(
        update={"seen": Seen(documents=len(found.seen & asked), unknown=len(found.unknown & asked), without=without)}
    )


@cache
def made_with() -> tuple[str, ...]:
    """Return what a row was made with, a line each, its kind first."""
    return (*versions(), f"commit {commit()}", f"code {code_sha256(HOME)}")


def row_of(model: Loaded, task: Task, asking: Asking, outcome: Outcome | None, skipped: int) -> EvalRow:
    """Make the row of a task.

    Args:
        outcome: None if all documents are too long.
    """
    metrics = {} if outcome is None else {name: outcome.metric(name) for name in outcome.values}
    first = next(iter(metrics.values()), None)
    return EvalRow(
        task=task.name,
        version=task.version,
        metric=task.metric,
        chance=task.chance,
        metrics={name: Mean(mean=one.mean, error=one.error) for name, one in metrics.items()},
        documents=first.documents if first else 0,
        clusters=first.clusters if first else 0,
        skipped=skipped,
        step=model.step,
        checkpoint=model.folder.name,
        made_with=made_with(),
        precision="bf16" if model.run.ds.bf16.enabled else "fp32",
        attention=asking.attention,
        mode=asking.mode,
        shots=asking.shots,
        draw=asking.seed,
        limit=asking.limit,
        examples=task.questions.examples(asking) if isinstance(task.questions, FromData) else None,
        data=None if task.file is None else f"{task.file.name} {task.checksum()}",
        requests=outcome.requests if outcome else "",
        tokenizer=model.tokenizer.sha256,
    )
