import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.evaluate.measure import Outcome
from pretrain.evaluate.rows import EvalRow, Mean, paired, read_rows, scores_file, write_rows

ROW = EvalRow(
    task="mine", version=1, metric="accuracy", chance=0.5, metrics={"accuracy": Mean(mean=0.5, error=None)}, documents=2,
    clusters=1, skipped=0, step=3, checkpoint="run/step", precision="fp32", attention="causal", mode=None, shots=0, draw=1,
    limit=None, data=None, requests="abc", tokenizer="def",
)  # fmt: skip


def test_rows_and_scores_are_read_as_they_were_written(tmp_path):
    outcome = Outcome(np.array([4, 9]), ("b", "a"), {"accuracy": np.array([1.0, 0.0])}, 0, "abc")
    write_rows(tmp_path / "x.jsonl", [ROW, ROW], {"mine": outcome})
    assert read_rows(tmp_path / "x.jsonl") == [ROW, ROW]
    with np.load(scores_file(tmp_path / "x.jsonl")) as scores:
        assert scores["mine/numbers"].tolist() == [4, 9] and scores["mine/clusters"].tolist() == [1, 0]
        assert scores["mine/accuracy"].tolist() == [1, 0]
    (tmp_path / "x.jsonl").write_text(ROW.model_dump_json() + "\n{}\n")
    with pytest.raises(UserError, match="line 2 is no row of an evaluation"):
        read_rows(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_rows_of_other_documents_are_not_compared():
    assert ROW.comparable(ROW) and ROW.comparable(ROW.model_copy(update={"step": 9, "draw": 7}))
    for change in ({"requests": "other"}, {"version": 2}, {"attention": "prefix"}):
        assert not ROW.comparable(ROW.model_copy(update=change))


def test_a_run_minus_itself_is_nothing():
    scores = np.random.default_rng(1).random(30).tolist()
    assert paired(scores, scores, [n // 3 for n in range(30)]) == (0, 0)
    mean, error = paired([score + 0.25 for score in scores], scores, list(range(30)))
    assert mean == pytest.approx(0.25) and error == pytest.approx(0, abs=1e-12)
