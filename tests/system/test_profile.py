"""`--profile-steps`: a trace that a browser opens, and a table."""

import gzip
import json

from tests.support.runs import rows, train


def test_the_steps_that_were_asked_for_are_recorded_and_change_nothing(project, tmp_path):
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    assert train(project, plain, "--stop-at", "5").returncode == 0
    done = train(project, profiled, "--stop-at", "5", "--profile-steps", "3-4")
    assert done.returncode == 0, done.stderr
    assert [row["loss"] for row in rows(plain) if "loss" in row] == [row["loss"] for row in rows(profiled) if "loss" in row]
    trace, table = (profiled / "profile" / f"steps_3-4_rank_0{end}" for end in (".json.gz", ".txt"))
    names = [event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"] if "name" in event]
    assert "aten::mm" in table.read_text() and names.count("sums, norm and update") == 2
    assert any(name.startswith("layer ") for name in names) and "micro-batch" in names
    assert names.count("step 3") == names.count("step 4") == 1 and "step 5" not in names


def test_a_run_that_begins_or_ends_within_the_steps_still_writes_what_it_has(project, tmp_path):
    trace = tmp_path / "run" / "profile" / "steps_2-9_rank_0.json.gz"
    for last in ("3", "4"):
        assert train(project, tmp_path / "run", "--stop-at", last, "--profile-steps", "2-9").returncode == 0
        assert trace.exists()
        trace.unlink()


def test_steps_that_are_none_are_refused(project, tmp_path):
    for words in ("4-3", "0", "x", "3-"):
        done = train(project, tmp_path / "run", "--profile-steps", words)
        assert done.returncode == 2 and f"--profile-steps {words}: write the first and the last step, as 20-22" in done.stderr
