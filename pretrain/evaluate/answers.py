"""Answers that a model writes: how near they are to one that counts as right, as SQuAD's script says (arXiv 1606.05250)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Return a text in small letters, without punctuation and articles, words apart by one space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    """Return 1 if a text is one of the answers, once both are normalised, else 0."""
    return float(normalized(text) in [normalized(answer) for answer in answers])


def f1(text: str, answers: Sequence[str]) -> float:
    """Return the best harmonic mean of precision and recall of words with any of the answers."""
    return max(_f1(normalized(text).split(), normalized(answer).split()) for answer in answers)


def _f1(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    common = (Counter(words) & Counter(right)).total()
    return 2 * common / (len(words) + len(right))
