"""Bad input: one clear error that names the file, the key and what to write instead."""

import json
import subprocess
import sys

import pytest

from pretrain.config import read_run
from pretrain.errors import UserError


def error_of(project, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        project.run(*settings).method
    return str(caught.value)


@pytest.mark.parametrize(
    "setting, complaint",
    [
        ("model.num_layer=8", 'unknown option "--model.num_layer"; did you mean "--model.num_layers"?'),
        ("ds.zero_optimisation.stage=1", 'did you mean "--ds.zero_optimization"?'),
        ("ds.optimizer.params.learning_rate=1", "valid here: betas"),
        ("steps.more=3", '"--steps" has no keys of its own'),
        ("steps=soon", "key \"steps\": input should be a valid integer, got 'soon'"),
        ("precision=fp8", 'precision fp8 needs bf16 for all else; write "bf16": {"enabled": true}'),
        ("precision=fp16", "input should be 'fp8', got 'fp16'"),
        ("model.attention=flash", "input should be 'auto', 'sdpa' or 'flex', got 'flash'"),
        ("model.num_attention_heads=3", "must be an even multiple of"),
        ("model.head_dim=7", "model.head_dim 7 must be even"),
        ("model.num_query_groups=3", "num_attention_heads 4 cannot be shared out to model.num_query_groups 3"),
        ("model.rope_scaling={type: yarn, factor: 4.0}", "yarn needs original_length"),
        ("model.rope_scaling={type: linear, factor: 0.5}", "input should be greater than or equal to 1"),
        ("model.biases=kv", "biases"),
        ("model.padded_vocab_size=599", "padded_vocab_size 599 is below model.vocab_size 600"),
        ("ds.progressive_subnetwork.path_lengths=6-4", "path_lengths 6-4 shrink"),
        ("ds.progressive_subnetwork.path_lengths=4-9", "between 1 and the model's 8 layers"),
        ("ds.progressive_subnetwork.path_lengths=1-8", "with 2 fixed layers among 8; use 2 to 8"),
        ("ds.progressive_subnetwork.path_lengths=4-x", "write whole numbers with dashes"),
        ("ds.progressive_subnetwork.balance_groups=3", "3 does not divide the model's 8 layers"),
        ("ds.progressive_subnetwork.balance_groups=4", "layers [1, 6] would never run"),
        ("ds.progressive_subnetwork.fixed_layers=[0, 1, 2, 3]", "cannot be spread evenly"),
        ("ds.progressive_subnetwork.stage_fractions=[0.5, 0.4, 0.2]", "they must add up to 1"),
        (
            "ds.progressive_subnetwork.method=rapter",
            "input should be 'full', 'raptr', 'constant', 'pld', 'ild_dts', "
            "'stacking', 'midas', 'raptr_heads', 'raptr_ffn' or 'raptr_parts', got 'rapter'",
        ),
        ("ds.train_micro_batch_size_per_gpu=3", "train_batch_size 8 is not a multiple of train_micro_batch_size_per_gpu 3"),
        ("ds.gradient_accumulation_steps=3", 'which give 4; write "auto"'),
        ("ds.progressive_subnetwork.paths_per_step=8", 'paths_per_step" 8 does not cut the batch of 8'),
        ("ds.scheduler.params.total_num_steps=7", 'contradicts the run\'s 20 steps; write "auto"'),
        ("ds.zero_optimization.contiguous_gradients=false", '"zero_optimization.contiguous_gradients" false has no meaning'),
        ("ds.zero_optimization.round_robin_gradients=true", "has no meaning in stage 1, which goes layer by layer; remove it"),
        ("ds.communication_data_type=fp16", "key \"communication_data_type\": input should be 'fp32' or 'bf16'"),
        ("ds.progressive_subnetwork.skipped_update=lazy", "input should be 'exact' or 'none', got 'lazy'"),
        ("ds.zero_optimization.offload_optimizer=cpu", "offloading is not supported here"),
        ("ds.fp16.enabled=true", "fp16 is not supported; use bf16"),
        ("ds.progressive_layer_drop.theta=0.5", 'write "progressive_subnetwork.method" pld'),
        ("seed=99999999999999999999", 'key "seed": input should be less than'),
        ("seed=010", 'key "seed": input should be a valid integer'),
        ("steps=[", 'option "--steps": while parsing'),
        ("ds.optimizer.params.lr=true", "input should be a valid number, got True"),
        ("ds.optimizer.params.lr=Infinity", "input should be a finite number"),
        ("ds.optimizer.params.betas=[2, 3]", "input should be less than 1"),
        ("ds.scheduler.params.cos_min_ratio=7", "input should be less than or equal to 1"),
        ("ds.scheduler={type: WarmupStableDecay}", "needs params.decay_num_steps"),
        ("ds.scheduler={type: WarmupStableDecay, params: {warmup_num_steps: 11, decay_num_steps: 10}}", "more than the run's 20"),
        ("ds.scheduler.params.decay_num_steps=5", '"decay_num_steps" is not an argument of WarmupCosineLR'),
        ("ds.scheduler.type=WarmupLR", '"cos_min_ratio" is not an argument of WarmupLR; remove it'),
        ("data.denoisers=[{kind: span, mode: '[NLU]', mean_spam: 3}]", 'did you mean "mean_span"?'),
        ("data.denoisers=[{kind: prefix, mode: '[S2S]', rate: 0.7}]", "cannot exceed 0.5"),
        ("ds.wall_clock_breakdwn=true", 'if you mean "--ds.wall_clock_breakdown": this program does not pass it on'),
        ("tokens=nan", "is not a number such as 32B"),
    ],
)
def test_a_wrong_setting_is_refused(project, setting, complaint):
    assert complaint in error_of(project, setting)


BLOCK = "ds.progressive_subnetwork"
FP8 = ("precision=fp8", "ds.bf16.enabled=true")


@pytest.mark.parametrize(
    "world, settings, complaint",
    [
        (3, ["parallel.tensor=2"], "3 processes cannot hold replicas of 2 tensor x 1 pipeline ranks; start a multiple of 2"),
        (3, ["parallel.pipeline=3"], "8 layers cannot be split over 3 pipeline ranks x 1 chunk; use 1, 2, 4, 8 in all"),
        (2, ["parallel.pipeline=2", "parallel.virtual=3"], "over 2 pipeline ranks x 3 chunks"),
        (1, ["parallel.virtual=2"], "parallel.virtual 2 needs pipeline ranks"),
        (8, ["parallel.tensor=8"], "model.num_attention_heads 4 cannot be split over parallel.tensor 8"),
        (4, ["parallel.tensor=4", "model.num_query_groups=2"], "num_query_groups 2 cannot be split over parallel.tensor 4"),
        (2, ["parallel.tensor=2", "model.ffn_hidden_size=49"], "model.ffn_hidden_size 49 cannot be split"),
        (2, ["parallel.tensor=2", "model.padded_vocab_size=641"], "model.padded_vocab_size 641 cannot be split"),
        (3, ["parallel.tensor=3", "model.num_attention_heads=3", "model.hidden_size=36", "parallel.sequence=true",
             "model.padded_vocab_size=642"], "data.sequence_length 64 cannot be split"),
        (1, ["parallel.sequence=true"], "there is one; set parallel.tensor"),
        (1, ["ds.zero_optimization.stage=0", "ds.zero_optimization.overlap_comm=true"],
         '"zero_optimization.overlap_comm" true needs "zero_optimization.stage" 1, 2 or 3, and it is 0'),
        (1, ["ds.zero_optimization.stage=0", "ds.zero_optimization.reduce_scatter=false"], 'reduce_scatter" false needs'),
        (1, ["ds.zero_optimization.stage=0", "ds.communication_data_type=bf16"], 'needs "zero_optimization.stage" 1, 2 or 3'),
        (1, ["ds.zero_optimization.stage=0", f"{BLOCK}.skipped_update=none"], 'skipped_update" "none" needs'),
        (1, ["ds.zero_optimization.stage=3", "ds.zero_optimization.contiguous_gradients=false"], "no meaning in stage 3"),
        (2, ["parallel.pipeline=2", "ds.zero_optimization.stage=3"], "gathers every layer anew for each micro-batch"),
        (2, ["parallel.pipeline=2", "parallel.virtual=2", "ds.train_batch_size=6", f"{BLOCK}.paths_per_step=1"],
         "3 micro-batches a rank are not a multiple of parallel.pipeline 2"),
        (8, [], "train_batch_size 8 is not a multiple of train_micro_batch_size_per_gpu 2 x 8 data-parallel ranks"),
        (2, [*FP8, "parallel.tensor=2"], "multiples of 16: 24 of model.ffn_hidden_size that a tensor rank runs is not"),
        (1, [*FP8, "model.hidden_size=24"], "model.hidden_size 24 is not; change it, or leave precision out"),
        (1, [*FP8, "model.num_query_groups=1", "model.head_dim=12"], "72 rows of queries, keys and values"),
        (1, [*FP8, f"{BLOCK}={{method: raptr_heads, group_lengths: 1-4}}"], "8 columns of queries that a tensor rank runs"),
        (1, [*FP8, f"{BLOCK}={{method: raptr_ffn, ffn_lengths: 3-6}}"], "24 of model.ffn_hidden_size that a tensor rank runs"),
        (1, [*FP8, "data.sequence_length=60"], "2 samples of data.sequence_length 60 is not"),
        (1, [f"{BLOCK}.paths_per_step=8"], "equal parts of whole micro-batches of 2"),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_run_is_refused(project, world, settings, complaint):
    with pytest.raises(UserError) as caught:
        project.run(*settings, world_size=world)
    assert complaint in str(caught.value)


def test_bf16_without_sharding_is_refused(project):
    assert "use stage 1" in error_of(project, "ds.bf16.enabled=true", "ds.zero_optimization.stage=0")


def files_error(project, tmp_path, recipe: str | None = None, ds: str | None = None) -> str:
    (tmp_path / "r.yaml").write_text(recipe if recipe is not None else project.recipe.read_text())
    (tmp_path / "d.json").write_text(ds if ds is not None else project.ds.read_text())
    with pytest.raises(UserError) as caught:
        read_run(str(tmp_path / "r.yaml"), [], str(tmp_path / "d.json"))
    return str(caught.value)


def test_a_misspelt_key_of_a_file_is_named_with_its_file_and_section(project, tmp_path):
    recipe = project.recipe.read_text()
    assert 'r.yaml: unknown key "seeds"; did you mean "seed"?' in files_error(project, tmp_path, recipe + "seeds: 3\n")
    wrong = recipe.replace("num_layers:", "num_layrs:")
    assert 'r.yaml: unknown key "num_layrs" in "model"; did you mean "num_layers"?' in files_error(project, tmp_path, wrong)
    ds = project.ds.read_text().replace("zero_optimization", "zero_optimisation")
    assert 'd.json: unknown key "zero_optimisation"; did you mean "zero_optimization"?' in files_error(project, tmp_path, ds=ds)
    ds = project.ds.read_text().replace('"lr"', '"Lr"')
    assert 'd.json: unknown key "Lr" in "optimizer.params"; did you mean "lr"?' in files_error(project, tmp_path, ds=ds)


def test_what_does_not_parse_is_shown_with_line_and_column(project, tmp_path):
    assert "d.json: line 2, column 16:" in files_error(project, tmp_path, ds='{\n "optimizer": {,}\n}')
    assert "r.yaml: line 2, column" in files_error(project, tmp_path, recipe="model: {\n  a: b: c\n")
    assert "expected keys and values" in files_error(project, tmp_path, ds="[1]")


def test_a_key_written_twice_is_refused(project, tmp_path):
    assert 'key "steps" is written twice' in files_error(project, tmp_path, project.recipe.read_text() + "steps: 9\n")
    ds = project.ds.read_text().replace('"gradient_clipping"', '"gradient_clipping": 1, "gradient_clipping"')
    assert 'key "gradient_clipping" is written twice' in files_error(project, tmp_path, ds=ds)


def test_a_missing_key_and_a_missing_file_are_named(project, tmp_path):
    ds = json.loads(project.ds.read_text())
    del ds["optimizer"]["params"]["lr"]
    assert 'd.json: key "optimizer.params.lr" is missing' in files_error(project, tmp_path, ds=json.dumps(ds))
    with pytest.raises(UserError, match="neither a YAML file nor one of .*ul2_1.6b, ul2_124m, ul2_tiny"):
        read_run("ul2_huge", [])
    with pytest.raises(UserError, match="nowhere.json: cannot be read: No such file"):
        read_run("ul2_tiny", [], "nowhere.json")


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["train", "ul2_tiny", "--stepz", "3"], 'unknown option "--stepz"; did you mean "--steps"?'),
        (["train", "ul2_tiny", "--run-dri", "x"], 'did you mean "--run-dir"?'),
        (["train", "ul2_tiny", "--train_batch_size", "8"], 'did you mean "--ds.train_batch_size"?'),
        (["train", "ul2_tiny", "--steps"], 'option "--steps" needs a value'),
        (["train", "ul2_tiny", "steps", "3"], 'unexpected "steps"'),
        (["plan", "ul2_tiny", "--tokens", "many"], "is not a number such as 32B"),
        (["plan", "ul2_tiny", "--tokens", "1B", "--steps", "3"], "give one"),
        (["train"], "which recipe?"),
        (["train", "--steps", "5", "ul2_tiny"], "the recipe comes first"),
        (["train", "ul2_tiny", "--steps", "5", "--steps=6"], "given twice"),
        (["train", "ul2_tiny", "--modle.num_layers", "4"], 'did you mean "--model.num_layers"?'),
    ],
)
def test_the_command_line_answers_at_once_with_status_2(words, complaint):
    done = subprocess.run([sys.executable, "-m", "pretrain", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and complaint in done.stderr and done.stderr.count("\n") == 1
