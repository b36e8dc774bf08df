import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from pretrain.errors import UserError
from pretrain.evaluate.documents import Document, Written
from pretrain.evaluate.task_data import TaskData, find_data, formatted
from pretrain.evaluate.task_file import TaskFile, read_task, shipped
from tests.unit.evaluate.test_task_file import GOOD

ROWS = [{"question": f"Is {n} even?", "label": n % 2, "group": n // 4} for n in range(40)]


def task(**changes) -> TaskFile:
    return TaskFile.model_validate({**GOOD, **changes})


def as_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.test.jsonl"
    path.write_bytes(as_lines(ROWS))
    return path


def write_as(path, end):
    content = as_lines(ROWS)
    compress = {".jsonl": lambda x: b"\xef\xbb\xbf" + x, ".jsonl.gz": gzip.compress, ".jsonl.xz": lzma.compress}
    if end == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif end == ".jsonl.zst":
        import zstandard

        path.write_bytes(zstandard.compress(content))
    else:
        path.write_bytes(compress[end](content))


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet"])
def test_any_kind_of_file_gives_the_same_documents(tmp_path, file, end):
    folder = tmp_path / "other/below"
    folder.mkdir(parents=True)
    write_as(folder / f"mine.test{end}", end)
    found = find_data(["none", "mine.test"], tmp_path / "other")
    assert found == folder / f"mine.test{end}"
    expected = TaskData("mine", task(), file, None).documents(None, 1, 0)
    assert TaskData("mine", task(), found, None).documents(None, 1, 0) == expected
    assert [document.number for document in expected] == list(range(1, 41)) and expected[3].answer == 1
    write_as(tmp_path / "other" / "mine.test.jsonl.gz", ".jsonl.gz")
    if end != ".jsonl.gz":
        with pytest.raises(UserError, match="both are named mine.test; keep one"):
            find_data(["mine.test"], tmp_path / "other")
    assert find_data(["mine.test"], None) is None and find_data(["nobody"], tmp_path) is None


def test_a_limit_draws_the_same_documents_whatever_the_examples(file):
    data = TaskData("mine", task(), file, None)
    some = data.documents(7, 1, 0)
    assert (
        some == data.documents(7, 1, 0) and len(some) == 7 and [one.number for one in some] == sorted(one.number for one in some)
    )
    assert [one.number for one in data.documents(7, 2, 0)] != [one.number for one in some]
    with_shots = data.documents(7, 1, 3)
    assert [one.number for one in with_shots] == [one.number for one in some]
    assert data.documents(400, 1, 0) == data.documents(None, 1, 0)


def test_examples_are_answered_others_and_never_of_its_own_cluster(file):
    data = TaskData("mine", task(cluster="{group}", introduction="Answer:\n"), file, None)
    plain = {one.number: one for one in data.documents(None, 1, 0)}
    for document in data.documents(None, 1, 5):
        begin, *shots, last = document.context.removeprefix("Answer:\n").split("\n\n")
        shots = [begin, *shots]
        assert "Answer:\n" + last == plain[document.number].context and document.context.startswith("Answer:\n")
        assert len(set(shots)) == 5
        for shot in shots:
            number = int(shot.split()[1])
            assert shot == f"Is {number} even? {'no' if number % 2 else 'yes'}"
            assert number // 4 != (document.number - 1) // 4
    with pytest.raises(UserError, match="fewer than 37 examples for document 1; take fewer --shots"):
        data.documents(None, 1, 37)


def test_examples_come_from_their_own_file_where_there_is_one(file, tmp_path):
    train = tmp_path / "mine.train.jsonl"
    train.write_bytes(as_lines([{"question": f"Train {n}?", "label": 0} for n in range(3)]))
    for document in TaskData("mine", task(), file, train).documents(None, 1, 2):
        assert document.context.count("Train") == 2


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "holds no documents"),
        (b'{"question": "a", "label": 0}\n{"question": ', "line 2: not JSON"),
        (b"[1]\n", "line 1: not a JSON object but list"),
        (b'{"question": "a"}\n', 'document 1, for task mine: no field "label"'),
        (b'{"question": "a\\ud800", "label": 0}\n', "half of a character"),
        (b'{"question": "a", "label": 2}\n', 'the answer "2" is none of 0, 1'),
        (b'{"question": "a", "label": -1}\n', 'the answer "-1" is none of 0, 1'),
    ],
)
def test_damage_is_one_line_with_the_place(file, content, says):
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        TaskData("mine", task(), file, None).documents(None, 1, 0)
    assert str(error.value).startswith(str(file)) and says in str(error.value)
    file.with_suffix(".jsonl.gz").write_bytes(gzip.compress(as_lines(ROWS))[:-20])
    with pytest.raises(UserError, match="damaged or truncated"):
        TaskData("mine", task(), file.with_suffix(".jsonl.gz"), None).documents(None, 1, 0)


def test_examples_of_the_same_file_by_name_are_never_the_document_itself(file):
    for document in TaskData("mine", task(), file, file).documents(None, 1, 30):
        *shots, last = document.context.split("\n\n")
        assert last not in [shot[: len(last)] for shot in shots]


def test_documents_are_of_one_kind(file):
    mixed = task(choices="{choices}", answer=0, labels=[], context="{question}")
    rows = [{"question": "a", "choices": ["x", "y"]}, {"question": "b", "choices": ["x"]}]
    file.write_bytes(as_lines(rows))
    with pytest.raises(UserError, match="document 2, for task mine: it has one choice, the first several"):
        TaskData("mine", mixed, file, None).documents(None, 1, 0)
    file.write_bytes(as_lines(rows[1:]))
    with pytest.raises(UserError, match="one choice each, and the metric of task mine is accuracy; quote greedy or bits"):
        TaskData("mine", mixed, file, None).documents(None, 1, 0)
    for choices in ({"A": "x", "B": "y"}, "xy"):
        file.write_bytes(as_lines([{"question": "a", "choices": choices}]))
        with pytest.raises(UserError, match="one is to be a list, and none are"):
            TaskData("mine", mixed, file, None).documents(None, 1, 0)


BOTH_WAYS = {
    "wsc": [
        {"text": "T", "span1_text": "a", "span2_text": "b", "label": 1},
        {"text": "T", "target": {"span1_text": "a", "span2_text": "b"}, "label": True},
    ],
    "boolq": [{"passage": "P", "question": "is it", "label": 0}, {"passage": "P", "question": "is it", "label": False}],
    "wic": [
        {"sentence1": "A", "sentence2": "B", "word": "w", "label": 1},
        {"sentence1": "A", "sentence2": "B", "word": "w", "label": True},
    ],
}
"""The same document as Hugging Face has it, and as SuperGLUE's own files."""


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_both_copies_of_the_data_are_read(name):
    one, other = (formatted(read_task(shipped()[name]), 1, row) for row in BOTH_WAYS[name])
    assert one == other


ROWS_OF = {
    "arc_easy": {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
    "piqa": {"goal": "G", "sol1": "s", "sol2": "t", "label": 1},
    "sciq": {
        "support": " S.", "question": "Q?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d",
    },
    "lambada": {"text": "He saw the sea"},
    "blimp": {"sentence_good": "It is.", "sentence_bad": "It are.", "UID": "agreement"},
    "winogrande": {
        "sentence": "Ann thanked Eve since _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2",
    },
    "hellaswag": {
        "activity_label": "Baking", "ctx_a": "A man [x] bakes.", "ctx_b": "he", "endings": ["eats [y].", "swims."], "label": "0",
        "source_id": "v1",
    },
    "boolq": {"passage": "P", "question": "is it", "label": 1},
    "cb": {"premise": "P", "hypothesis": "H", "label": "neutral"},
    "copa": {"premise": "It rained.", "question": "effect", "choice1": "The road got wet.", "choice2": "He sang.", "label": 0},
    "rte": {"premise": "P.", "hypothesis": "H.", "label": "not_entailment"},
    "record": {
        "passage": "Ann met Bo.\n@highlight\nAnn met him\n@highlight\nHe left", "query": "Later @placeholder left.",
        "entities": ["Ann", "Bo", "him"], "answers": ["Bo", "him", "Bo"],
    },
}  # fmt: skip
EXPECTED = {
    "arc_easy": ("Question: Q?\nAnswer:", [" x", " y"], 1),
    "piqa": ("Question: G\nAnswer:", [" s", " t"], 1),
    "sciq": ("S.\nQuestion: Q?\nAnswer:", [" a", " b", " c", " d"], 3),
    "lambada": ("He saw the", [" sea"], 0),
    "blimp": ("", ["It is.", "It are."], 0),
    "winogrande": (("Ann thanked Eve since Ann", "Ann thanked Eve since Eve"), [" had helped."] * 2, 1),
    "hellaswag": ("Baking: A man bakes. He", [" eats .", " swims."], 0),
    "boolq": ("P\nQuestion: is it?\nAnswer:", [" no", " yes"], 1),
    "cb": ("P\nQuestion: H. True, False, or Neither?\nAnswer:", [" True", " False", " Neither"], 2),
    "copa": ("It rained therefore", [" the road got wet.", " he sang."], 0),
    "rte": ("P.\nQuestion: H. True or False?\nAnswer:", [" True", " False"], 1),
    "record": (
        "Ann met Bo.\n\n  - Ann met him.\n  - He left.\n",
        [f"\n  - Later {name} left." for name in ("Ann", "Bo", "him")],
        1,
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_tasks_that_come_along_are_put_as_lm_eval_puts_them(name):
    """The texts that lm-eval 0.4.13 makes of these documents, written out."""
    found = formatted(read_task(shipped()[name]), 1, ROWS_OF[name])
    context, continuations, answer = EXPECTED[name]
    assert isinstance(found, Document) and found.context == context and found.answer == answer
    assert [choice for _, choice in found.pairs] == continuations


def test_all_answers_of_a_list_are_right_and_each_must_be_a_choice():
    file, row = read_task(shipped()["record"]), ROWS_OF["record"]
    found = formatted(file, 1, row)
    assert isinstance(found, Document) and (found.answer, found.also) == (1, (2,))
    with pytest.raises(ValueError, match='the answer "Eve" is none of Ann, Bo, him'):
        formatted(file, 1, {**row, "answers": ["Bo", "Eve"]})
    with pytest.raises(ValueError, match="it has no answer in {answers}"):
        formatted(file, 1, {**row, "answers": []})


def test_a_document_needs_choices():
    for choices, says in (([], "it has no choices in {choices.text}"), (["a", " "], "a choice is empty")):
        row = {"question": "Q?", "choices": {"text": choices, "label": ["1", "2"]}, "answerKey": "2"}
        with pytest.raises(ValueError, match=says):
            formatted(read_task(shipped()["arc_easy"]), 1, row)


def test_answers_that_are_written():
    asked = formatted(read_task(shipped()["nq_open"]), 3, {"question": "who sang it", "answer": ["Bob", "Bobby"]})
    assert asked == Written("Q: who sang it?\nA:", ("Bob", "Bobby"), "3", 3, " ", ("\n", ".", ","), 32, "who sang it Bob")
    assert asked.after("x ").answered == "x Q: who sang it?\nA: Bob"
    row = {"title": "T", "context": "C", "question": "Q?", "answers": {"text": []}}
    assert formatted(read_task(shipped()["squadv2"]), 1, row).answers == ("unanswerable",)
    with pytest.raises(ValueError, match="it has no answer in"):
        formatted(read_task(shipped()["triviaqa"]), 1, {"question": "Q", "answer": {"aliases": []}})
