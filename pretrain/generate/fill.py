"""Blanks in a text, as UL2's span denoisers put them: `The [X] of France is [X].`"""

from collections.abc import Sequence

from pretrain.config.recipe import Data
from pretrain.errors import UserError
from tokenizer.pieces import Tokenizer, sentinel

BLANK = "[X]"
LINE = "\n"


def mode_of_spans(data: Data) -> str | None:
    """Return the mode token of the first span denoiser that a run was trained with.

    Raises:
        UserError: it was trained with none.
    """
    spans = [denoiser for denoiser in data.denoisers if denoiser.kind == "span"] if data.objective == "ul2" else []
    if not spans:
        raise UserError("--fill: the run was trained without span denoisers, so it fills no blanks; use --prompt")
    return spans[0].mode


def with_sentinels(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Encode a text with a sentinel for each blank. A space before a blank belongs to what fills it, as in training.

    Raises:
        UserError: no blank, or more than the tokenizer has sentinels for.
    """
    parts = text.split(BLANK)
    if not 1 < len(parts) <= tokenizer.sentinels + 1:
        raise UserError(f"--fill: write {BLANK} where something is to be filled in, 1 to {tokenizer.sentinels} times")
    found: list[int] = []
    for number, part in enumerate(parts):
        if number:
            found.append(tokenizer.id(sentinel(number - 1)))
        kept = part.removesuffix(" ") if number < len(parts) - 1 else part
        if kept:
            found += _middle(kept, tokenizer) if number else map(int, tokenizer.encode([kept])[0])
    return tuple(found)


def _middle(text: str, tokenizer: Tokenizer) -> list[int]:
    """Encode a text that something is before: sentencepiece puts a space before every text that it gets, and here none is."""
    line, both = (ids.tolist() for ids in tokenizer.encode([LINE, LINE + text]))
    if both[: len(line)] != line:
        raise UserError(f"{tokenizer.directory}: its pieces cross the ends of lines; --fill cannot cut a text there")
    return both[len(line) :]


def filled(text: str, written: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text with what was written in its blanks; a blank that nothing was written for stays."""
    parts = text.split(BLANK)
    spans: dict[int, list[int]] = {}
    numbers, current = {tokenizer.id(sentinel(number)): number for number in range(len(parts) - 1)}, -1
    for token in written:
        if token in numbers:
            current = numbers[token]
        else:
            spans.setdefault(current, []).append(token)
    out = [parts[0]]
    for number, part in enumerate(parts[1:]):
        span = tokenizer.text(spans[number]) if number in spans else BLANK
        begins_apart = out[-1].endswith(" ") or not "".join(out)
        out += [span.removeprefix(" ") if begins_apart else span, part]
    return "".join(out)
