"""What follows from recipe, JSON and command line."""

import inspect
import json
from pathlib import Path

import pytest

from pretrain.config import read_run
from pretrain.config.deepspeed import DeepSpeedConfig, Zero
from pretrain.config.recipe import Recipe
from pretrain.config.strict import Strict, section_of
from pretrain.plan.memory import parameters

SHIPPED = sorted(path.stem for path in Path("pretrain/recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid_and_their_json_is_deepspeeds(name):
    from deepspeed.runtime.config import DeepSpeedConfig as Theirs

    run = read_run(name, [])
    ours = json.loads(Path(run.ds_file).read_text())
    theirs = Theirs({**ours, "gradient_accumulation_steps": run.micro_batches})
    assert theirs.train_micro_batch_size_per_gpu == run.micro_batch
    assert theirs.zero_optimization_stage == run.ds.zero_optimization.stage


@pytest.mark.parametrize(
    "name, published", [("llama_1b", 1_235_814_400), ("qwen3_0.6b", 596_049_920), ("olmo2_1b", 1_484_916_736)]
)
def test_published_shapes_have_as_many_parameters_as_published(name, published):
    assert parameters(read_run(name, []), 0) == published


def test_shipped_schedules_save_what_they_say():
    from pretrain.cost.flops import savings

    factors = {name: savings(run.method, run.recipe.shape).layer_factor for name in SHIPPED for run in [read_run(name, [])]}
    assert factors["ul2_124m"] == pytest.approx(4 / 3, abs=0.005)
    assert factors["ul2_1.6b"] == pytest.approx(1.2, abs=0.01)


def test_every_key_of_deepspeed_is_either_taken_or_refused_with_a_reason():
    """A new DeepSpeed may bring keys; they must not pass as misspelt ones."""
    from deepspeed.runtime import config as ds_config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = set(Zero.model_fields) | set(Zero.foreign)
    theirs = set(DeepSpeedZeroConfig.model_fields) | set(ds_config._REMOVED_ZERO_CONFIG_KEYS)
    theirs |= {field.alias for field in DeepSpeedZeroConfig.model_fields.values() if field.alias}
    assert theirs - known == set()
    top = set(DeepSpeedConfig.model_fields) | set(DeepSpeedConfig.foreign)
    assert set(ds_config._REMOVED_TOP_LEVEL_CONFIG_KEYS) - top == set()
    assert top_level_keys(ds_config) - top == set()


def top_level_keys(module) -> set[str]:
    """Names that DeepSpeed's getters look up in the top level of its JSON."""
    import re

    source = inspect.getsource(module)
    names = set(
        re.findall(r"(?:get_scalar_param\(param_dict|param_dict\.get\(|in param_dict|param_dict\[)[,\s\[(]*([A-Z_]{4,})", source)
    )
    names |= set(re.findall(r"get_scalar_param\(param_dict, ([A-Z_]+),", source))
    return {value for name in names if isinstance(value := getattr(module, name, None), str) and "\n" not in value}


def test_every_setting_is_explained():
    def check(model: type[Strict], where: str) -> None:
        for name, field in model.model_fields.items():
            section = section_of(model, name)
            if section:
                check(section, f"{where}{name}.")
            else:
                assert field.description, f"{where}{name} has no docstring"

    check(Recipe, "")
    check(DeepSpeedConfig, "ds.")


def test_batch_arithmetic(project):
    run = project.run()
    assert (run.batch, run.micro_batch, run.micro_batches, run.tokens_per_step) == (8, 2, 4, 512)
    assert [run.path_index(j, 0, 2) for j in range(4)] == [0, 0, 1, 1]


def test_tokens_stand_for_steps(project):
    assert project.run("tokens=512K").steps == 1000
    assert project.run("tokens=0.0512M").steps == 100


def test_path_seed_defaults_to_the_runs_seed(project):
    paths = lambda *settings: [project.run(*settings).method.paths(step) for step in range(1, 7)]
    assert paths("seed=5") == paths("seed=0", "ds.progressive_subnetwork.path_seed=5") != paths("seed=0")


def test_identity_leaves_out_what_changes_no_loss(project):
    same = [
        "model.recompute=layer",
        "save_every=3",
        "threads=2",
        "ds.train_micro_batch_size_per_gpu=4",
        "ds.zero_optimization.stage=0",
    ]
    assert project.run(*same).identity() == project.run().identity()
    for setting in ("seed=1", "steps=30", "ds.optimizer.params.lr=1", "ds.progressive_subnetwork.residual_scale=1/keep"):
        assert project.run(setting).identity() != project.run().identity()


def test_numbers_as_people_write_them(project):
    assert project.run("ds.optimizer.params.lr=3e-4").ds.optimizer.params.lr == 3e-4
    assert project.run("ds.progressive_subnetwork.path_lengths=[4, 8]").ds.progressive_subnetwork.path_lengths == (4, 8)
    assert project.run("ds.progressive_subnetwork.path_lengths=8").ds.progressive_subnetwork.path_lengths == (8,)
