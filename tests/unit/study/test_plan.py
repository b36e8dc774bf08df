"""What a study's file asks for, and what is wrong with it."""

import json
from pathlib import Path

import pytest

from pretrain.config.command_line import option_pairs
from pretrain.cost.flops import savings
from pretrain.errors import UserError
from pretrain.study.identity import settings_of
from pretrain.study.plan import read_study
from pretrain.study.row import read_table
from tests.support.studies import METHODS, write_study


def operations(run) -> float:
    return float(run.steps * savings(run.method, run.recipe.shape).layer_flops)


def test_methods_seeds_and_sizes_seed_by_seed(project, tmp_path):
    study = read_study(write_study(project, tmp_path, sizes={"narrow": None, "wide": {"model.ffn_hidden_size": 64}}))
    assert [one.name for one in study.planned[:7]] == [
        "narrow-full-seed1",
        "narrow-short-seed1",
        "narrow-raptr-seed1",
        "wide-full-seed1",
        "wide-short-seed1",
        "wide-raptr-seed1",
        "narrow-full-seed2",
    ]
    assert len(study.planned) == 12 and study.baseline == "full"
    wide = study.planned[3].run
    assert (wide.recipe.model.ffn_hidden_size, wide.recipe.seed, wide.recipe.eval_parts, wide.name) == (
        64,
        1,
        True,
        "small: full, seed 1",
    )


def test_later_settings_win(project, tmp_path):
    methods = {"a": {"method": "full"}, "b": {"method": "full", "options": {"ds.optimizer.params.lr": 5e-3, "eval-every": 5}}}
    file = write_study(
        project, tmp_path, methods=methods, options={"ds.optimizer.params.lr": 2e-3, "steps": 12, "eval_parts": False}
    )
    a, b, *_ = read_study(file, option_pairs(["--steps", "16"])).planned
    assert (a.run.ds.optimizer.params.lr, b.run.ds.optimizer.params.lr) == (2e-3, 5e-3)
    assert (a.run.steps, a.run.recipe.eval_every, b.run.recipe.eval_every, b.run.recipe.eval_parts) == (16, 10, 5, False)


@pytest.mark.parametrize(
    "other",
    [
        {"method": "raptr", "path_lengths": "4-6-8"},
        {"method": "constant", "path_lengths": "5"},
        {"method": "stacking", "path_lengths": "4-8"},
        {"method": "pld", "gamma": 0.05},
        {"method": "ild_dts", "q_max": 0.9},
    ],
)
def test_equal_flops_mean_equal_layer_operations_up_to_half_a_step(project, tmp_path, other):
    file = write_study(
        project, tmp_path, methods={"short": {"method": "full", "flops_of": "other"}, "other": other}, options={"steps": 600}
    )
    short, reference = (one.run for one in read_study(file).planned[:2])
    assert reference.steps == 600 and abs(operations(short) - operations(reference)) <= 0.5


def test_a_method_whose_share_follows_from_its_length_is_matched_too(project, tmp_path):
    methods = {"full": {"method": "full"}, "pld": {"method": "pld", "gamma": 0.01, "flops_of": "full"}}
    pld = read_study(write_study(project, tmp_path, methods=methods, options={"steps": 400})).planned[1].run
    assert pld.steps > 500 and abs(operations(pld) - 400) <= 1


def test_a_length_nearby_that_cannot_be_run_is_not_in_the_way(project, tmp_path):
    methods = {"full": {"method": "full"}, "raptr": {"method": "raptr", "path_lengths": "4-6-8", "flops_of": "full"}}
    raptr = read_study(write_study(project, tmp_path, methods=methods, options={"steps": 3})).planned[1].run
    assert raptr.steps in (3, 4)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"seeds": [1, 1]}, r'key "seeds": \[1, 1\] names one twice'),
        ({"methodes": METHODS}, 'unknown key "methodes"; did you mean "methods"?'),
        ({"baseline": "ful"}, 'key "baseline": no method is called "ful"; did you mean "full"?'),
        ({"methods": {"a b": {"method": "full"}}}, 'key "methods": "a b" goes into the names of folders'),
        ({"methods": {"a": {"method": "fulll"}}}, "method a: .*got 'fulll'"),
        ({"methods": {"a": {"method": "full", "flops_of": "b"}}}, 'key "methods.a.flops_of": no method is called "b"'),
        ({"methods": {"a": {"method": "full", "flops_of": "a"}}}, 'key "methods.a.flops_of": a would wait for itself'),
        (
            {"methods": {"a": {"method": "full", "flops_of": "b"}, "b": {"method": "full", "flops_of": "a"}}},
            "would wait for itself",
        ),
        (
            {"methods": {**METHODS, "short": {"method": "full", "flops_of": "raptr", "options": {"steps": 3}}}},
            "flops_of decides the steps",
        ),
        ({"methods": {"a": {"flops_of": "b"}, "b": {"method": "full"}}}, 'key "methods.a.method" is missing'),
        ({"methods": {"a": {"method": "full", "flops_of": ["b"]}}}, r"no method is called"),
        (
            {"methods": {"a": {"method": "full", "options": {"data.train": "elsewhere"}}}},
            "methods are compared with the same data and model; set data.train under",
        ),
        (
            {"methods": {"a": {"method": "full", "options": {"data.sequence-length": 32}}}},
            "same data and model; set data.sequence_length under",
        ),
        (
            {"methods": {"a": {"method": "full", "options": {"ds.train_batch_size": 32}}}},
            "same data and model; set ds.train_batch_size under",
        ),
        ({"name": ".."}, 'key "name"'),
        ({"ds_config": None}, "how to optimise is said in a JSON file, and neither"),
        ({"options": {"steps": "many"}}, 'recipe.yaml and the study\'s options: key "steps"'),
        ({"options": {"seed": 3}}, 'seed is decided by the study\'s key "seeds"'),
        ({"options": {"ds.progressive_subnetwork.method": "full"}}, 'decided by the study\'s key "methods"'),
        ({"options": {"stepz": 3}}, 'key "options": unknown option "--stepz"; did you mean "--steps"?'),
        ({"sizes": {"wide": {"model.num_layers": 7}}}, "method raptr: .*path"),
        ({"recipe": "ul2_tinny"}, 'recipe "ul2_tinny" is neither'),
        ({"seeds": []}, 'key "seeds"'),
    ],
)
def test_a_mistake_is_told_with_its_place(project, tmp_path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        read_study(write_study(project, tmp_path, **changes))


def test_a_mistake_on_the_command_line_is_told_of_there(project, tmp_path):
    with pytest.raises(UserError, match='command line: option "--seed": .*study.yaml decides that by its key "seeds"'):
        read_study(write_study(project, tmp_path), [("--seed", "3")])


@pytest.mark.parametrize(
    "file", [file for file in sorted(Path("bench/studies").rglob("*.yaml")) if file.name != "recipe.yaml"], ids=str
)
def test_shipped_studies_can_be_read(file):
    study = read_study(file)
    for one in study.planned:
        if one.method.startswith("saves_"):
            assert savings(one.run.method, one.run.recipe.shape).layer_factor == pytest.approx(float(one.method[6:]), rel=0.01)


@pytest.mark.parametrize("file", sorted(Path("bench/studies").rglob("*.rows.jsonl")), ids=str)
def test_committed_rows_are_of_the_study_beside_them(file):
    study = read_study(file.with_name(file.name.replace(".rows.jsonl", ".yaml")))
    planned = {one.key: one for one in study.planned}
    rows = read_table(file)
    assert rows and all(row.settings == json.loads(json.dumps(settings_of(planned[row.key].run))) for row in rows)
    assert '"/' not in file.read_text(), "a path of some machine"
