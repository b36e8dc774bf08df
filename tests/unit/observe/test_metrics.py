"""Rows that were damaged do not keep a good run from its checkpoint."""

import json

from pretrain.observe.metrics import MetricsFile, read_rows


def row(step: int, **more) -> str:
    return json.dumps({"step": step, "loss": 5.0, "restart": 0, **more}) + "\n"


def test_a_damaged_row_is_put_aside_and_said(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes((row(1) + row(2) + "\0\r\0\n" + row(4)).encode())
    metrics = MetricsFile(file, 4)
    metrics.append({"step": 5, "loss": 4.0, "restart": 1})
    metrics.close()
    assert [found["step"] for found in read_rows(file)] == [1, 2, 4, 5]
    assert (tmp_path / "metrics.jsonl.damaged0").read_bytes() == b"\0\r\0\n"
    assert "line 3 is not a row" in capsys.readouterr().out


def test_rows_of_losses_on_held_out_text_are_counted_at_the_step_where_it_resumes(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(row(9) + row(10) + '{"step": 10, "eval_loss": 5.1}\n' + row(11))
    assert [MetricsFile(file, step).evaluated for step in (10, 9)] == [1, 0]
