import json

import numpy as np
import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.data.tokens import open_tokens
from pretrain.evaluate import contamination
from pretrain.evaluate.contamination import Overlap, Search, shingles
from pretrain.evaluate.task_data import formatted
from pretrain.evaluate.task_file import read_task, shipped
from tokenizer.encode import encode

TEXT = "One two three, four five six seven eight nine ten eleven twelve thirteen fourteen! Fifteen."


@pytest.fixture
def stream(project, tmp_path, monkeypatch):
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path / "cache"))
    tokenizer = tokenizer_of(project.run())
    texts = [f"Nothing to see in text {n}. " * 30 for n in range(20)]
    texts[7] += "and then ONE two  three four; five six seven\neight nine ten eleven twelve thirteen, was said."
    texts[11] += "one two three four five six seven"  # ends here
    texts[12] = "eight nine ten eleven twelve thirteen begins here. " + texts[12]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    encode(str(tmp_path / "texts.jsonl"), tokenizer, tmp_path / "train")
    return open_tokens(tmp_path / "train", tokenizer.vocab_size, tokenizer.sha256), tokenizer


def overlap(texts, streams, tokenizer, workers) -> Overlap:
    search = Search({"other": {9: "nothing " * 20}, "mine": texts}, streams, tokenizer, workers)
    while search.go_on():
        pass
    assert not search.found("other").seen
    return search.found("mine")


def test_stretches_are_of_words_alone():
    assert len(shingles(TEXT)) == 3 and len(np.unique(shingles(TEXT))) == 3
    assert shingles(TEXT.upper().replace(",", " --")).tolist() == shingles(TEXT).tolist()
    assert len(shingles("too short")) == 0 and shingles(TEXT.replace("six", "sex"))[0] != shingles(TEXT)[0]
    assert len(shingles("\u6211\u5011\u5728\u8aaa\u4e2d\u6587\u4e0d\u662f\u82f1\u6587\u4e5f\u5f88\u597d\u3002")) == 1, (
        "each character is a word of Chinese"
    )


@pytest.mark.parametrize("name", ["arc_easy", "squadv2", "wsc"])
def test_what_the_format_adds_hides_nothing(name):
    """Stretches are of the data alone, whatever the format puts between question and answer."""
    question, answer = " ".join(TEXT.split()[:9]), " ".join(TEXT.split()[9:14])
    row = {
        "arc_easy": {"question": question, "choices": {"text": ["no", answer], "label": ["A", "B"]}, "answerKey": "B"},
        "squadv2": {"title": "x", "context": "y", "question": question, "answers": {"text": [answer]}},
        "wsc": {"text": TEXT, "span1_text": "one", "span2_text": "two", "label": 1},
    }[name]
    told = formatted(read_task(shipped()[name]), 1, row).told
    assert np.isin(shingles(" ".join(TEXT.split()[:14])), shingles(told)).all()


@pytest.mark.parametrize("tokens", [2**21, 200])
@pytest.mark.parametrize("workers", [1, 2])
def test_documents_that_were_seen_are_found(stream, monkeypatch, tokens, workers):
    monkeypatch.setattr(contamination, "TOKENS", tokens)
    source, tokenizer = stream
    documents = {
        1: TEXT,
        2: TEXT.replace("four", "for"),  # two, ..., fourteen is not there: the training text ends with thirteen
        3: "Question: " + TEXT,
        4: "short",
        5: "Nothing to see in text 3. Nothing to see in text 3. Nothing to see",
    }
    found = overlap(documents, [source], tokenizer, workers)
    assert found.seen == {1, 3, 5} and found.unknown == {4}


def test_what_was_found_is_kept_and_other_questions_are_looked_up_anew(stream, monkeypatch):
    source, tokenizer = stream
    first = overlap({1: TEXT}, [source], tokenizer, 1)
    monkeypatch.setattr(contamination, "_seen", lambda *_, **__: pytest.fail("it was looked up before"))
    assert overlap({1: TEXT}, [source], tokenizer, 1) == first and first.seen == {1}
    with pytest.raises(pytest.fail.Exception):
        overlap({1: TEXT + " More."}, [source], tokenizer, 1)
    assert overlap({4: "short"}, [], tokenizer, 1).unknown == {4}
