"""Tasks that are made from a seed: they need no data, have no licence, and no text for training can hold them. MIDAS's authors
saw their largest effects on such (arXiv 2409.19044)."""

from collections.abc import Callable
from random import Random

from pretrain.evaluate.documents import Document

WORDS = (
    "apple arm bag ball bank bed bell bird boat book box bread bus cake camp car card cat chair coat corn cow cup desk dish"
    " dog door duck egg farm fire fish flag food fork gate gold hand hat hill home horse ice king lake lamp land leaf milk"
    " moon nail neck nest oil page park pen pig plant rain ring road rock roof room rose salt sand seed ship shoe shop snow"
    " song star tail tent tree wall wind wood wool yard"
).split()
NAMES = "abcdefghijklmnopqrstuvwxyz"
Question = tuple[str, tuple[str, ...], int]
"""Context, choices, and the index of the right one."""
COPIED, REPEATED = 10, 5
VARIABLES = 5


def induction_copying(count: int, seed: int, shots: int = 0) -> list[Document]:
    """Ten words, then five that stood together among them once more: which one comes next? Chance is a tenth."""

    def one(draw: Random) -> Question:
        words = draw.sample(WORDS, COPIED)
        begin = draw.randrange(COPIED - REPEATED)
        repeated = words[begin : begin + REPEATED]
        return f"{' '.join(words)} {' '.join(repeated)} ->", tuple(words), begin + REPEATED

    return _documents(one, f"copying {seed}", count, shots)


def variable_assignment(count: int, seed: int, depth: int, shots: int = 0) -> list[Document]:
    """Variables with values, copied `depth` times to others: which value has one of the last? Chance is a fifth.

    Args:
        depth: 0 to 2.
    """

    def one(draw: Random) -> Question:
        values = draw.sample(range(10, 100), VARIABLES)
        names = draw.sample(NAMES, VARIABLES * (depth + 1))
        lines = [f"{name} = {value}" for name, value in zip(names, values)]
        holders = list(range(VARIABLES))  # whose value each of the last variables has
        for level in range(1, depth + 1):
            before, now = (names[VARIABLES * n : VARIABLES * (n + 1)] for n in (level - 1, level))
            order = draw.sample(range(VARIABLES), VARIABLES)
            lines += [f"{name} = {before[source]}" for name, source in zip(now, order)]
            holders = [holders[source] for source in order]
        asked = draw.randrange(VARIABLES)
        text = f"{', '.join(lines)}. {names[VARIABLES * depth + asked]} ="
        return text, tuple(map(str, values)), holders[asked]

    return _documents(one, f"assignment {depth} {seed}", count, shots)


def _documents(one: Callable[[Random], Question], seed: str, count: int, shots: int) -> list[Document]:
    """Each document with examples of its own before it, answered. The questions are the same with any number of them."""
    draw, draw_shots, found = Random(seed), Random(f"{seed} shots"), []
    for number in range(1, count + 1):
        examples = [one(draw_shots) for _ in range(shots)]
        shown = "".join(f"{context} {choices[answer]}\n" for context, choices, answer in examples)
        context, choices, answer = one(draw)
        found.append(Document(shown + context, choices, answer, str(number), number))
    return found
