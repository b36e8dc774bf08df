"""`inspect batch`: what the model will see, as coloured text and as a picture of who sees whom."""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from pretrain.config import Run
from pretrain.data.batch import Batch
from pretrain.data.loader import open_data
from pretrain.model.attention import allowed
from tokenizer.pieces import Tokenizer

STYLES = {"reserved": "bold magenta", "prefix": "cyan", "target": "green", "masked": "bold black on yellow", "read": "default"}
LEGEND = {
    "reserved": "reserved piece",
    "prefix": "read both ways",
    "target": "predicted from what is left of it",
    "masked": "shown, and what is predicted in its place",
    "read": "read only",
}
IN_LOSS = "underline"
"""Added to the style of what counts in the loss."""
MARKS = ("\u00ab", "\u00bb")
"""What stands around it where there are no colours, as in a file."""
BYTES = 4
"""Most bytes of a character in UTF-8."""
MOST_SHOWN = 4
"""Samples in the picture."""


def inspect_batch(run: Run, step: int, out: Path) -> None:
    """Show the first micro-batch of a step, and write its attention mask to `out`.

    Raises:
        UserError: the data cannot be opened.
    """
    data = open_data(run)
    first, tokenizer = (step - 1) * run.batch, data.tokenizer
    batch = data.train.batch(first, run.micro_batch)
    document_ends = [data.train.document_ends(first + row) for row in range(run.micro_batch)]
    data.close()
    in_place, kinds, console = run.recipe.data.made_as.labels_in_place, run.recipe.data.kinds, Console(highlight=False)
    marked = not console.is_terminal
    if marked:
        console.print(f"{MARKS[0]}between these marks{MARKS[1]}: counts in the loss")
    else:
        console.print(
            Text("  ").join([*(Text(LEGEND[name], style) for name, style in STYLES.items()), Text("counts in the loss", IN_LOSS)])
        )
    for row in range(len(batch.tokens)):
        filled, wanted = int((batch.segments[row] >= 0).sum()), int(batch.targets[row].sum())
        console.rule(
            f"step {step}, sample {row}: {filled} of {batch.tokens.shape[1]} positions filled, {wanted} predicted", characters="-"
        )
        for example in range(batch.segments[row].max() + 1):
            places = np.flatnonzero(batch.segments[row] == example)
            kind = kinds[batch.kinds[row, places[0]]]
            ends = "; its document ends here" if document_ends[row][example] else ""
            console.print(
                f"example {example}: {kind.denoiser} of {kind.source}, positions {places[0]} to {places[-1]}{ends}", style="dim"
            )
            console.print(as_text(batch, row, example, tokenizer, in_place, marked))
    draw(batch, out)
    console.print(f"who sees whom: {out}")


def roles(batch: Batch, row: int, example: int, tokenizer: Tokenizer, in_place: bool) -> list[str]:
    """What each position of an example is, a key of STYLES.

    Args:
        in_place: labels belong to their own position (mlm), not to the next one.
    """
    places = np.flatnonzero(batch.segments[row] == example)
    found = []
    for place in places:
        predicted = batch.targets[row, place] if in_place else place > places[0] and batch.targets[row, place - 1]
        if in_place and predicted:
            found.append("masked")
        elif tokenizer.is_reserved(int(batch.tokens[row, place])):
            found.append("reserved")
        elif predicted:
            found.append("target")
        else:
            found.append("prefix" if batch.prefix[row, place] else "read")
    return found


def as_text(batch: Batch, row: int, example: int, tokenizer: Tokenizer, in_place: bool, marked: bool = False) -> Text:
    """One example, piece by piece, each in the colour of its role, and the token after the last one, which is never read.

    Args:
        marked: put MARKS around what counts in the loss, for where there are no colours.
    """
    text, places = Text(), np.flatnonzero(batch.segments[row] == example)

    def add(words: str, style: str, counts: bool) -> None:
        opens, closes = MARKS if marked and counts else ("", "")
        if opens and text.plain.endswith(closes):  # one pair around neighbours
            text.right_crop(len(closes))
            opens = ""
        text.append(opens + words + closes, f"{style} {IN_LOSS}" if counts else style)

    shown = _shown(tokenizer, batch.tokens[row, places])
    for index, role in enumerate(roles(batch, row, example, tokenizer, in_place)):
        if role == "masked":
            add(f"{shown[index]}→{_shown(tokenizer, batch.labels[row, places[index], None])[0]}", STYLES[role], True)
        else:
            add(shown[index], STYLES[role], bool(not in_place and index > 0 and batch.targets[row, places[index - 1]]))
    if not in_place and batch.targets[row, places[-1]]:
        add(_shown(tokenizer, batch.labels[row, places[-1:]])[0], f"dim {STYLES['target']}", True)
    return text


def _shown(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """What to print for each token; a character whose bytes are in several is shown at the first of them, a dot at the others."""
    spelt = [tokenizer.piece_bytes[token] for token in tokens]
    shown, first = list[str](), 0
    while first < len(tokens):
        count, text = next(
            ((count, text) for count in range(1, BYTES + 1) if (text := _decoded(spelt[first : first + count])) is not None),
            (1, "".join(f"<0x{byte:02X}>" for byte in spelt[first])),  # cut off, or no character
        )
        shown += [text or tokenizer.name(int(tokens[first])), *["·"] * (count - 1)]
        first += count
    return [piece.replace("\n", "⏎\n").replace("\t", "⇥") for piece in shown]


def _decoded(pieces: list[bytes]) -> str | None:
    """The text of some pieces; None where they end within a character, or some of them are no text beside others that are."""
    if len(pieces) > 1 and not all(pieces):
        return None
    try:
        return b"".join(pieces).decode()
    except UnicodeDecodeError:
        return None


def draw(batch: Batch, out: Path) -> None:
    """The attention mask of the first samples: a dot where the row's position reads the column's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    count, length = min(MOST_SHOWN, len(batch.tokens)), batch.tokens.shape[1]
    may = allowed(torch.from_numpy(batch.segments), torch.from_numpy(batch.prefix))
    place = torch.arange(length)
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 4.6), dpi=110, layout="constrained", squeeze=False)
    colours = ListedColormap(["white", "#0072B2", "#E69F00", "#D9D9D9"])
    for row, axis in enumerate(axes[0]):
        sample = torch.tensor(row)
        picture = may(sample, torch.tensor(0), place[:, None], place[None, :]).numpy().astype(int)
        picture[(picture == 1) & (place[None, :] > place[:, None]).numpy()] = 2
        picture[batch.segments[row] < 0] = 3
        axis.imshow(picture, cmap=colours, vmin=0, vmax=3, interpolation="nearest")
        axis.set_title(f"sample {row}: {batch.segments[row].max() + 1} examples", fontsize=10)
        axis.set_xlabel("position that is read")
    axes[0, 0].set_ylabel("position that reads")
    figure.suptitle("blue: backwards, orange: forwards (within a prefix), grey: padding", fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    plt.close(figure)
