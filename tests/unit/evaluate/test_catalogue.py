import json

import pytest

from pretrain.errors import UserError
from pretrain.evaluate.catalogue import FromData, catalogue, choose, lack_of, lacking
from pretrain.evaluate.measure import Asking
from pretrain.evaluate.task_file import shipped
from tests.support.tasks import write_tasks

GENERATED = ["induction_copying", *(f"variable_assignment_{depth}" for depth in range(3))]


def test_a_tier_is_what_there_is_data_of(tmp_path, project):
    run = project.run()
    without = catalogue(run, None)
    assert [task.name for task in choose(["tiny"], without, None)] == [*GENERATED, "held_out"]
    assert lacking(["tiny"], without) == ["arc_easy", "lambada", "piqa", "sciq"]
    write_tasks(tmp_path, 3)
    tasks = catalogue(run, tmp_path)
    assert lacking(["tiny", "small", "paper"], tasks) == []
    names = [task.name for task in choose(["tiny"], tasks, tmp_path)]
    assert names == [*GENERATED, "held_out", "arc_easy", "lambada", "piqa", "sciq"]
    assert [task.name for task in choose(["rte", "tiny", "rte"], tasks, tmp_path)] == ["rte", *names]
    assert len(choose(["paper"], tasks, tmp_path)) == 16


def test_a_name_without_data_says_where_people_get_it(tmp_path):
    tasks = catalogue(None, None)
    with pytest.raises(UserError) as error:
        choose(["squadv2"], tasks, None)
    for words in ("squadv2.validation", "--data", "huggingface.co/datasets/rajpurkar/squad_v2", "CC BY-SA 4.0"):
        assert words in str(error.value)
    assert f"is not in {tmp_path}" in lack_of(tasks["squadv2"], tmp_path)
    assert lack_of(tasks["held_out"], None) == "needs a run"


def test_names_and_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match='--tasks blmp: no tier, file or task is called so; did you mean "blimp"'):
        choose(["blmp"], catalogue(None, None), None)
    with pytest.raises(UserError, match="none.yaml: cannot be read"):
        choose([str(tmp_path / "none.yaml")], catalogue(None, None), None)
    with pytest.raises(UserError, match="piqa.yaml: a task that comes along is called piqa; give the file another name"):
        choose([str(tmp_path / "piqa.yaml")], catalogue(None, None), None)
    with pytest.raises(UserError, match="--data .*: no such folder"):
        catalogue(None, tmp_path / "none")


def test_a_source_has_a_task_of_its_own(project):
    home = project.home
    sources = [{"name": name, "train": str(home / "train"), "valid": str(home / "valid")} for name in ("docs", "prose")]
    run = project.run(f"data.sources={json.dumps(sources)}", "data.train=null", "data.valid=null")
    tasks = catalogue(run, None)
    assert [name for name in tasks if name.startswith("held_out")] == ["held_out_docs", "held_out_prose"]
    assert [task.name for task in choose(["held_out"], tasks, None)] == ["held_out_docs", "held_out_prose"]


def test_it_is_said_which_file_examples_are_of(tmp_path):
    write_tasks(tmp_path, 3)
    (task,) = choose(["boolq"], catalogue(None, tmp_path), tmp_path)
    assert isinstance(task.questions, FromData)
    assert task.questions.examples(Asking(None, 1, 2, "causal", None)) == "boolq.validation.jsonl"
    assert task.questions.examples(Asking(None, 1, 0, "causal", None)) is None
    (tmp_path / "boolq.train.jsonl").write_bytes((tmp_path / "boolq.validation.jsonl").read_bytes())
    (task,) = choose(["boolq"], catalogue(None, tmp_path), tmp_path)
    assert isinstance(task.questions, FromData)
    assert task.questions.examples(Asking(None, 1, 2, "causal", None)) == "boolq.train.jsonl"


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "sub"):
        folder.mkdir(exist_ok=True)
        (folder / "mine.yaml").write_text(shipped()["boolq"].read_text())
    (tmp_path / "boolq.validation.jsonl").write_text('{"passage": "P", "question": "Q", "label": 0}\n')
    words, tasks = [str(tmp_path / "mine.yaml"), str(tmp_path / "sub/mine.yaml")], catalogue(None, tmp_path)
    assert len(choose([words[0], words[0]], tasks, tmp_path)) == 1
    with pytest.raises(UserError, match="another file is called mine, too"):
        choose(words, tasks, tmp_path)
