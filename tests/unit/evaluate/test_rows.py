from dataclasses import replace

import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.evaluate.measure import Outcome
from pretrain.evaluate.rows import EvalRow, Mean, differences, read_rows, read_written, scores_file, write_rows

ROW = EvalRow(
    task="mine", version=1, metric="accuracy", chance=0.5, metrics={"accuracy": Mean(mean=0.5, error=None)}, documents=2,
    clusters=1, skipped=0, step=3, checkpoint="step_3", made_with=("torch 2.13.0",), precision="fp32", attention="causal",
    mode=None, shots=0, draw=1, limit=None, data=None, requests="abc", tokenizer="def",
)  # fmt: skip


def test_rows_and_scores_are_read_as_they_were_written(tmp_path):
    outcome = Outcome(np.array([4, 9]), ("b", "a"), {"accuracy": np.array([1.0, 0.0])}, 0, "abc")
    write_rows(tmp_path / "x.jsonl", [ROW, ROW], {"mine": outcome})
    assert read_rows(tmp_path / "x.jsonl", EvalRow) == [ROW, ROW]
    with np.load(scores_file(tmp_path / "x.jsonl")) as scores:
        assert scores["mine/numbers"].tolist() == [4, 9] and scores["mine/clusters"].tolist() == [1, 0]
        assert scores["mine/accuracy"].tolist() == [1, 0]
    (tmp_path / "x.jsonl").write_text(ROW.model_dump_json() + "\n{}\n")
    with pytest.raises(UserError, match="line 2 is no row of an evaluation"):
        read_rows(tmp_path / "x.jsonl", EvalRow)
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl", EvalRow)


def test_rows_of_other_documents_are_not_compared():
    assert ROW.comparable(ROW) and ROW.comparable(ROW.model_copy(update={"step": 9, "draw": 7}))
    for change in ({"requests": "other"}, {"version": 2}, {"attention": "prefix"}):
        assert not ROW.comparable(ROW.model_copy(update=change))


def test_a_run_minus_itself_is_nothing_and_pairs_are_documents(tmp_path):
    scores = np.random.default_rng(1).random(30)
    clusters = tuple(str(n // 3) for n in range(30))
    one = Outcome(np.arange(30), clusters, {"accuracy": scores}, 0, "abc")
    write_rows(tmp_path / "x.jsonl", [ROW], {"mine": one})
    written = read_written(tmp_path / "x.jsonl")
    (same,) = differences([ROW], {"mine": one}, written)
    assert (same.mean, same.error, same.half_width) == (0, 0, 0)
    other = Outcome(one.numbers, clusters, {"accuracy": scores + np.tile([0.5, 0.0, 0.1], 10)}, 0, "abc")
    (found,) = differences([ROW], {"mine": other}, written)
    assert (found.task, found.metric, found.clusters) == ("mine", "accuracy", 10) and found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(0, abs=1e-7), "whole clusters differ alike"
    unlike = ROW.model_copy(update={"requests": "other"})
    with pytest.raises(UserError, match="task mine was put to that checkpoint with other documents"):
        differences([unlike], {"mine": other}, written)
    with pytest.raises(UserError, match="has none of the tasks"):
        differences([ROW.model_copy(update={"task": "yours"})], {}, written)
    shuffled = replace(other, numbers=other.numbers[::-1])
    with pytest.raises(UserError, match="x.npz: holds the scores of another evaluation than x.jsonl"):
        differences([ROW], {"mine": shuffled}, written)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-30], lambda whole: b"x" * 90, None])
def test_scores_that_are_damaged_are_one_line(tmp_path, damage):
    one = Outcome(np.arange(30), ("a",) * 30, {"accuracy": np.random.default_rng(1).random(30)}, 0, "abc")
    write_rows(tmp_path / "x.jsonl", [ROW], {"mine": one})
    file = scores_file(tmp_path / "x.jsonl")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="x.npz: cannot be read"):
        read_written(tmp_path / "x.jsonl")
