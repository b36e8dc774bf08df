"""The tasks that there are, and what a model makes of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pretrain.config.recipe import Data
from pretrain.errors import UserError
from pretrain.evaluate.documents import Document, Metric, bits_per_byte, chosen, mean_of, requests_of
from pretrain.evaluate.generated import induction_copying, variable_assignment
from pretrain.evaluate.requests import Request, Scorer, score
from tokenizer.pieces import Tokenizer


@dataclass(frozen=True)
class Task:
    """Documents with choices of which one is right."""

    about: str
    chance: float
    """Accuracy of whoever knows nothing."""
    make: Callable[[int, int, int], list[Document]]
    """From how many documents, a seed and how many answered examples before each."""


def _assignment(depth: int) -> Task:
    about = f"the value of a variable, copied {depth} times" if depth else "the value of one of five variables"
    return Task(about, 1 / 5, lambda count, seed, shots: variable_assignment(count, seed, depth, shots))


TASKS: Mapping[str, Task] = {
    "induction_copying": Task("the next of ten words, of which five are said again", 1 / 10, induction_copying),
    **{f"variable_assignment_{depth}": _assignment(depth) for depth in range(3)},
}


@dataclass(frozen=True)
class Asking:
    """How documents are put to a model."""

    documents: int
    seed: int
    shots: int
    attention: Literal["prefix", "causal"]
    """How contexts are read: both ways, as training's prefixes are, or not."""
    mode: str | None
    """Piece before each context."""


@dataclass(frozen=True)
class Outcome:
    """What a model makes of a task."""

    accuracy: Metric
    """Share of documents whose right choice is the likeliest."""
    greedy: Metric
    """Share of documents whose right choice is what greedy decoding gives, among all that could be written."""
    bits: Metric
    """Bits that the right choice takes, a byte of its text."""
    skipped: int
    """Documents that are too long for the model. Nothing is ever cut."""


def as_trained(data: Data) -> tuple[Literal["prefix", "causal"], str | None]:
    """Return how training has a text continued: attention and mode token of its first prefix denoiser, else causal and none."""
    prefixes = [denoiser for denoiser in data.denoisers if denoiser.kind == "prefix"] if data.objective == "ul2" else []
    return ("prefix", prefixes[0].mode) if prefixes else ("causal", None)


def measure(scorer: Scorer, tokenizer: Tokenizer, name: str, asking: Asking, length: int) -> Outcome:
    """Put a task to a model.

    Args:
        length: positions of a sample.

    Raises:
        UserError: every document is too long.
    """
    documents = TASKS[name].make(asking.documents, asking.seed, asking.shots)
    asked: list[tuple[Document, list[Request]]] = []
    for document in documents:
        requests = requests_of(document, tokenizer, asking.mode)
        if max(request.positions for request in requests) <= length:
            asked.append((document, requests))
    if not asked:
        raise UserError(
            f"task {name}: all {len(documents)} documents are longer than the model's {length} positions; take fewer --shots"
        )
    scores = iter(
        score(scorer, [request for _, requests in asked for request in requests], length, 0, asking.attention == "prefix")
    )
    right, greedy, bits = [], [], []
    for document, requests in asked:
        own = [next(scores) for _ in requests]
        right.append(float(chosen(own) == document.answer))
        greedy.append(float(own[document.answer].is_greedy))
        bits.append(bits_per_byte(own, document))
    kept = [document for document, _ in asked]
    return Outcome(mean_of(right, kept), mean_of(greedy, kept), mean_of(bits, kept), len(documents) - len(kept))
