"""Methods by the keys of `progressive_subnetwork`."""

import json

import pytest

from pretrain.errors import UserError
from tests.support.project import DS, Project
from tests.support.runs import rows, train


def with_block(project, tmp_path, name: str = "progressive_subnetwork", **block) -> Project:
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps({**{k: v for k, v in DS.items() if k != "progressive_subnetwork"}, name: block}))
    return Project(project.home, project.recipe, ds)


BLOCKS = {
    "constant": {"path_lengths": "6", "balance_groups": 2, "residual_scale": "1/keep"},
    "pld": {"theta": 0.3, "gamma": 0.1, "paths_per_step": 2},
    "ild_dts": {"q_max": 0.9, "paths_per_step": 4},
    "stacking": {"path_lengths": "4-6-8", "stage_fractions": [0.5, 0.25, 0.25]},
    "midas": {"path_lengths": [4, 8]},
}


@pytest.mark.parametrize("method", BLOCKS)
def test_a_run_counts_what_its_method_ran(project, tmp_path, method):
    chosen = with_block(project, tmp_path, method=method, **BLOCKS[method])
    done = train(chosen, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    run = chosen.run()
    found = [row for row in rows(tmp_path / "run") if "loss" in row]
    for row in found:
        paths = run.method.paths(row["step"])
        assert row["active_layers"] == pytest.approx(sum(path.length for path in paths) / len(paths))
    assert found[-1]["layer_flops_saved"] == pytest.approx(1 - sum(row["active_layers"] for row in found) / 160)
    again = Project(project.home, tmp_path / "run" / "recipe.yaml", tmp_path / "run" / "ds_config.json").run()
    assert again.identity() == run.identity(), "as it was written down"


@pytest.mark.parametrize(
    "block, complaint",
    [
        (
            {"method": "pld", "path_lengths": "4-8"},
            'method "pld" has no path_lengths; it takes theta, gamma, paths_per_step, residual_scale, path_seed, skipped_update',
        ),
        ({"method": "ild_dts", "sampler": "exact", "theta": 0.5}, 'method "ild_dts" has no theta, sampler; it takes q_max'),
        ({"method": "raptr", "path_lengths": "4-8", "q_max": 0.6}, 'method "raptr" has no q_max'),
        ({"method": "stacking", "path_lengths": "4-8", "residual_scale": "1/keep"}, 'method "stacking" has no residual_scale'),
        ({"method": "midas"}, 'method "midas" needs "path_lengths"'),
        ({"method": "constant"}, '"constant" needs "path_lengths", as in "9"'),
        ({"method": "constant", "path_lengths": "4-8"}, "one path length for the whole run"),
        ({"method": "pld", "theta": 2}, "theta 2 must lie between 0 and 1"),
    ],
)
def test_keys_of_other_methods_are_refused(project, tmp_path, block, complaint):
    with pytest.raises(UserError) as refused:
        with_block(project, tmp_path, **block).run().method
    assert complaint in str(refused.value)


def test_an_optimizer_whose_updates_cannot_be_replayed_is_refused_with_the_reason(project):
    with pytest.raises(UserError) as refused:
        project.run("ds.optimizer.type=Lion")
    assert "optimizer.type" in str(refused.value) and "is made up for by replaying its updates, got 'Lion'" in str(refused.value)


def test_residual_scale_follows_the_method_unless_given(project, tmp_path):
    def scale(**block):
        return with_block(project, tmp_path, **block).run().ds.progressive_subnetwork.residual_scale

    assert [scale(method="pld"), scale(method="ild_dts"), scale(method="full"), scale(method="pld", residual_scale="none")] == [
        "1/keep",
        "1/keep",
        "none",
        "none",
    ]


def test_deepspeeds_former_key_is_understood(project, tmp_path):
    run = with_block(project, tmp_path, "progressive_layer_drop", enabled=True, theta=0.4, gamma=0.01).run()
    block = run.ds.progressive_subnetwork
    assert (block.method, block.theta, block.gamma, block.residual_scale) == ("pld", 0.4, 0.01, "1/keep")
    (notice,) = run.notices
    assert (
        '"progressive_layer_drop", which DeepSpeed has removed, is taken for "progressive_subnetwork": {"method": "pld", "theta":'
        ' 0.4, "gamma": 0.01}' in notice
    )
    assert with_block(project, tmp_path, "progressive_layer_drop", enabled=False).run().method.name == "full"
    assert with_block(project, tmp_path, "progressive_layer_drop", theta=0.5, gamma=0.001).run().method.name == "pld"
    with pytest.raises(UserError, match="has the keys enabled, theta and gamma"):
        with_block(project, tmp_path, "progressive_layer_drop", thetta=0.5).run()
    assert project.run().notices == ()
    done = train(with_block(project, tmp_path, "progressive_layer_drop", theta=0.5), tmp_path / "run", "--stop-at", "1")
    assert notice.split(":")[0] in done.stdout and "is taken for" in done.stdout


def test_both_keys_are_refused(project, tmp_path):
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps({**DS, "progressive_layer_drop": {"theta": 0.5}}))
    with pytest.raises(UserError, match='"progressive_layer_drop" and "progressive_subnetwork" say the same'):
        Project(project.home, project.recipe, ds).run()


@pytest.mark.parametrize("stage, wanted", [(0, "exact"), (1, "none"), (3, "none")])
def test_sleeping_layers_stand_still_unless_given_where_they_can(project, stage, wanted):
    block = {"method": "raptr", "path_lengths": "4-8"}
    settings = f"ds.progressive_subnetwork={json.dumps(block)}", f"ds.zero_optimization.stage={stage}"
    assert project.run(*settings).ds.progressive_subnetwork.skipped_update == wanted
    given = f"ds.progressive_subnetwork={json.dumps(block | {'skipped_update': 'exact'})}"
    assert project.run(given, settings[1]).ds.progressive_subnetwork.skipped_update == "exact"
