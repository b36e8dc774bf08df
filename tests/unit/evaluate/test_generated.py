import re

import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.engine import build_engine
from pretrain.evaluate.documents import chosen, mean_of, requests_of
from pretrain.evaluate.generated import WORDS, induction_copying, variable_assignment
from pretrain.evaluate.requests import score

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
        return " " + ten[ten.index(last) + 1]
    table = dict(re.findall(r"(\w) = (\w+)", text))
    value = text.removesuffix(" =").split()[-1]
    while value in table:
        value = table[value]
    return f" {value}"


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
            assert f" {answer}" == solved(asked + mark)
    assert make(300, seed=4, shots=2, **how) == documents != make(300, seed=5, shots=2, **how)
    for without, document in zip(make(300, seed=4, **how), documents, strict=True):
        assert document.context.endswith(without.context) and document.choices == without.choices, "the same question"
    answers = {document.answer for document in documents}
    assert len(answers) == 5, "of the ten words five may be next"


def test_words_are_apart():
    assert len(set(WORDS)) == len(WORDS) > 80 and all(word.isalpha() for word in WORDS)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_has_learned_nothing_is_at_chance(project, ranks, task):
    make, how, chance = TASKS[task]
    run = project.run("data.sequence_length=192")
    engine, tokenizer = build_engine(run, ranks), tokenizer_of(run)
    documents = make(150, seed=1, **how)
    requests = [requests_of(document, tokenizer, "[S2S]") for document in documents]
    scores = iter(score(engine, [request for part in requests for request in part], 192, 0, both_ways=True))
    right = [float(chosen([next(scores) for _ in part]) == doc.answer) for part, doc in zip(requests, documents, strict=True)]
    found = mean_of(right, documents)
    assert abs(found.mean - chance) <= 3 * found.error and found.documents == 150
