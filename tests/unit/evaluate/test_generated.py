import re

import pytest

from pretrain.evaluate.generated import WORDS, induction_copying, variable_assignment

TASKS = {
    "induction copying": (induction_copying, {}, 1 / 10),
    **{f"variable assignment, depth {d}": (variable_assignment, {"depth": d}, 1 / 5) for d in range(3)},
}


def solved(context: str) -> str:
    """The answer, worked out from the text alone."""
    text = context.splitlines()[-1]
    if text.endswith("->"):
        words = text.removesuffix(" ->").split()
        ten, last = words[:10], words[-1]
        return ten[ten.index(last) + 1]
    table = dict(re.findall(r"(\w) = (\w+)", text))
    value = text.removesuffix(" =").split()[-1]
    while value in table:
        value = table[value]
    return value


@pytest.mark.parametrize("task", TASKS)
def test_each_question_has_the_answer_that_its_text_says(task):
    make, how, chance = TASKS[task]
    documents = make(300, seed=4, shots=2, **how)
    for document in documents:
        *shots, _ = document.context.splitlines()
        assert len(shots) == 2 and len(set(document.choices)) == len(document.choices) == round(1 / chance)
        assert document.choices[document.answer] == solved(document.context)
        for shot in shots:
            asked, mark, answer = re.fullmatch(r"(.*)(->|=) (\w+)", shot).groups()
            assert answer == solved(asked + mark)
    assert make(300, seed=4, shots=2, **how) == documents != make(300, seed=5, shots=2, **how)
    for without, document in zip(make(300, seed=4, **how), documents, strict=True):
        assert document.context.endswith(without.context) and document.choices == without.choices, "the same question"
    answers = {document.answer for document in documents}
    assert len(answers) == 5, "of the ten words five may be next"


def test_words_are_apart():
    assert len(set(WORDS)) == len(WORDS) > 80 and all(word.isalpha() for word in WORDS)
