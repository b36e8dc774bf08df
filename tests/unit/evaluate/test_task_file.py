import pytest
import yaml

from pretrain.errors import UserError
from pretrain.evaluate.task_file import TIERS, read_task, shipped

GOOD = {
    "about": "what is right",
    "version": 1,
    "data": ["mine.test"],
    "source": "my desk",
    "licence": "CC0",
    "format": "this project's own",
    "context": "{question}",
    "choices": ["yes", "no"],
    "answer": "{label}",
    "metric": "accuracy",
    "chance": 0.5,
}


@pytest.mark.parametrize("name", shipped())
def test_every_task_that_comes_along_is_complete(name):
    task = read_task(shipped()[name])
    assert task.licence and task.source and ("lm-eval 0.4.13" in task.format or "own" in task.format)
    for file in (*task.data, *task.shots_from):
        assert file in task.source or file.partition(".")[0] in (name, name.removesuffix("_no_context"), file.partition(".")[0])
    if isinstance(task.choices, tuple) and len(task.choices) > 1:
        assert task.chance == pytest.approx(1 / len(task.choices), abs=1e-3)
    assert (task.metric in ("exact_match", "f1", "greedy")) == (task.chance == 0)


def test_tiers_hold_what_they_promise():
    tiers = {tier: {name for name, file in shipped().items() if tier in read_task(file).tiers} for tier in TIERS}
    assert tiers["tiny"] == {"lambada", "arc_easy", "piqa", "sciq"}
    assert tiers["small"] == tiers["tiny"] | {"blimp", "winogrande", "hellaswag", "boolq", "copa", "cb", "rte", "wsc"}
    written = {name for name in tiers["paper"] if read_task(shipped()[name]).answers is not None}
    assert written == {"triviaqa", "nq_open", "webqs", "tydiqa", "tydiqa_no_context", "squadv2", "drop", "coqa"}


@pytest.mark.parametrize(
    "change, says",
    [
        ({"chocies": ["a"]}, 'unknown key "chocies"; did you mean "choices"?'),
        ({"context": "{question:shout}"}, 'key "context'),
        ({"answers": "{a}"}, "give either choices, which are ranked, or answers, which are written"),
        ({"choices": None}, "give either choices"),
        ({"metric": "f1"}, "metric f1 is for answers"),
        ({"metric": "luck"}, 'key "metric"'),
        ({"context": ["{a}", "{b}", "{c}"]}, "several contexts need as many choices"),
        ({"context": "Answer: "}, "two spaces apart"),
        ({"data": ["/there/x"]}, 'key "data'),
        ({"data": ["*"]}, 'key "data'),
        ({"average": "bytes"}, "is for bits_per_byte"),
        ({"edit": ["shout"]}, 'no edit is called "shout"'),
        ({"version": 0}, 'key "version"'),
        ({"chance": 2}, 'key "chance"'),
        ({"data": []}, 'key "data"'),
    ],
)
def test_a_fault_is_one_line_with_file_and_key(tmp_path, change, says):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    assert read_task(file).choices == ("yes", "no")
    file.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(UserError) as error:
        read_task(file)
    assert str(error.value).startswith(str(file)) and says in str(error.value) and "\n" not in str(error.value)
