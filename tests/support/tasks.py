"""Small documents of every task that needs data, made of random words, so that nobody can know an answer."""

import json
from pathlib import Path
from random import Random

WORDS = "red tree house river bird stone bread night water road hill lamp green cold small open long quiet old near".split()


def _rows(draw: Random, number: int) -> dict[str, dict]:
    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    def sentence() -> str:
        return text(5).capitalize() + "."

    label, several = draw.randrange(2), [text(2) for _ in range(4)]
    glue = {"premise": sentence(), "hypothesis": sentence(), "label": label, "passage": sentence(), "question": text(4)}
    answers = [text(1), text(2)]
    arc = {"question": sentence(), "choices": {"text": several, "label": list("ABCD")}, "answerKey": draw.choice("ABCD")}
    names = Random(number).sample(WORDS, 5)
    return {
        "record.validation": {
            "passage": sentence() + "\n@highlight\n" + sentence()[:-1], "query": f"{text(2)} @placeholder {text(2)}",
            "entities": names, "answers": [names[number % 5]],
        },
        "lambada_openai.test": {"text": text(9)},
        "arc_easy.test": arc,
        "arc_challenge.validation": arc,
        "piqa.validation": {"goal": sentence(), "sol1": text(3), "sol2": text(3), "label": label},
        "sciq.test": {
            "support": " " + sentence(), "question": sentence(), "distractor1": several[0], "distractor2": several[1],
            "distractor3": several[2], "correct_answer": several[3],
        },
        "blimp": {"sentence_good": sentence(), "sentence_bad": sentence(), "UID": f"paradigm_{number % 15}"},
        "winogrande.validation": {
            "sentence": f"{text(3)} _ {text(3)}.", "option1": text(1), "option2": text(1), "answer": str(1 + label),
        },
        "hellaswag.validation": {
            "activity_label": text(1), "ctx_a": sentence(), "ctx_b": text(1), "endings": several, "label": str(draw.randrange(4)),
            "source_id": str(number),
        },
        "boolq.validation": glue,
        "cb.validation": {**glue, "label": draw.randrange(3)},
        "copa.validation": {
            "premise": sentence(), "question": draw.choice(["cause", "effect"]), "choice1": sentence(), "choice2": sentence(),
            "label": label,
        },
        "rte.validation": glue,
        "wsc.validation": {"text": sentence(), "span1_text": text(1), "span2_text": text(1), "label": label},
        "wic.validation": {"sentence1": sentence(), "sentence2": sentence(), "word": text(1), "label": label},
        "multirc.validation": {"paragraph": sentence(), "question": text(4), "answer": text(2), "label": label},
        "triviaqa.validation": {"question": text(4), "answer": {"aliases": answers}},
        "nq_open.validation": {"question": text(4), "answer": answers},
        "webqs.test": {"question": text(4), "answers": answers},
        "squadv2.validation": {"title": text(1), "context": sentence(), "question": text(4), "answers": {"text": []}},
        "coqa.turns.validation": {"story": sentence(), "earlier": "Q: a\n\nA: b\n\n", "question": text(3), "answers": answers},
        "drop.validation": {"passage": sentence(), "question": text(4), "answers_spans": {"spans": answers}},
        "tydiqa_goldp_en.validation": {"context": sentence(), "question": text(4), "answers": {"text": answers}},
    }  # fmt: skip


def write_tasks(folder: Path, count: int) -> None:
    """Write `count` documents of every task."""
    draw = Random(1)
    rows = [_rows(draw, number) for number in range(count)]
    for name in rows[0]:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row[name]) + "\n" for row in rows))
