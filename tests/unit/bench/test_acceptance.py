"""How the parts of slurm/acceptance.sh are judged; that they run is a test of tests/system/slurm."""

import pytest

from bench.acceptance import furthest, judge_gpu, judged, line
from bench.acceptance_job import Failed, Job, Layout, Part, layouts
from bench.gpu_parts import PARTS


@pytest.mark.parametrize(
    "tasks, tasks_per_node, names",
    [
        (1, 1, "one"),
        (2, 1, "DP2 TP2 PP2"),
        (3, 3, "DP3"),
        (4, 2, "DP4 TP2xDP2 PP2xDP2 TP2xPP2"),
        (8, 4, "DP8 TP2xDP4 PP2xDP4 TP4xDP2 TP2xPP2xDP2"),
    ],
)
def test_layouts_are_those_that_the_tasks_can_form(tasks, tasks_per_node, names):
    assert [layout.name(tasks) for layout in layouts(tasks, tasks_per_node)] == names.split()


def test_losses_that_differ_or_lack_steps_are_noticed():
    assert furthest([3.0, 2.0], [3.0, 2.5]) == 0.5
    with pytest.raises(Failed, match="1 steps instead of 2"):
        furthest([3.0], [3.0, 2.5])


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    job = Job("7", 2, 1, tmp_path, "cpu", 1, ["sh", "-c", 'echo "error: no such device"; exit 3', "sh"])

    def kill_and_resume(job):
        (job.out / "x.log").touch()
        job.finish("x", job.start("x"))

    part = judged(kill_and_resume, job)
    assert (
        not part.good and part.name == "kill and resume" and "ended with" in part.words and str(job.out / "x.log") in part.words
    )
    assert "FAILED" in capsys.readouterr().out
    assert "**kill and resume: ended with" in line(job, [part, Part("parity", True, "fine")])


def test_what_a_gpu_does_not_do_is_named():
    row = {"what": "MFU", "value": 0.41, "most": None, "least": 0.38, "failed": False}
    all_parts = {name: {"name": name, "rows": [row], "problem": None, "seconds": 3.0} for name in PARTS}
    good = judge_gpu(list(all_parts.values()))
    assert good.good and good.words == f"bench.gpu: {len(PARTS)} lines hold"
    slow = all_parts["speed"] | {"rows": [{**row, "value": 0.2}]}
    late = all_parts["smoke"] | {"problem": "no time was left"}
    found = judge_gpu([part for part in (all_parts | {"speed": slow, "smoke": late}).values() if part["name"] != "replay"])
    assert not found.good and found.words == "replay: did not run; smoke: no time was left; speed: MFU 0.2 at least 0.38"


def test_tensor_ranks_stay_on_a_node():
    assert Layout(tensor=4) not in layouts(8, 2)
