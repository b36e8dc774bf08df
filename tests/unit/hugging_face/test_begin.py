"""A run that begins with weights of Hugging Face's computes what transformers' class computes, and so do its gradients."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pretrain.checkpoint.directory import RunDirectory
from pretrain.checkpoint.saver import Saver
from pretrain.config import Run
from pretrain.data.loader import open_data
from pretrain.engine import Engine, build_engine
from pretrain.errors import UserError
from pretrain.hugging_face.begin import begin_with_weights
from pretrain.hugging_face.settings import model_keys, require_same
from pretrain.hugging_face.tensors import decoder_table, taken_apart
from pretrain.model.attention import dense_mask
from pretrain.model.layer import LayerInputs
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath
from tests.support.hugging_face import FOLDERS, LAYERS, PIECES, make_model, make_tokenizer, settings
from tests.support.project import Project
from tokenizer import load_tokenizer
from tokenizer.encode import encode

TOLERANCE = 1e-4
LEFT_OUT = (2, 5)


@dataclass
class There:
    home: Path
    kind: str
    theirs: PreTrainedModel
    project: Project

    @property
    def folder(self) -> Path:
        return self.home / self.kind

    def run(self, **changed: str) -> Run:
        return self.project.run(*(f"{key}={value}" for key, value in {**settings(self.kind, self.home), **changed}.items()))


@pytest.fixture(scope="module", params=FOLDERS)
def there(request, project, home, tmp_path_factory) -> There:
    at = tmp_path_factory.mktemp("hf")
    texts = [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]
    make_tokenizer(at / request.param, texts[:20])
    for name in ("train", "valid"):
        encode(str(home / f"{name}.jsonl"), load_tokenizer(at / request.param), at / name)
    model = make_model(request.param)
    model.save_pretrained(at / request.param, max_shard_size="60kB")
    return There(at, request.param, model, project)


def begun(run: Run, ranks: Ranks, at: Path) -> Engine:
    engine, data = build_engine(run, ranks), open_data(run)
    with Saver(run, engine.optimizer, ranks, RunDirectory(at), data.checksums()) as saver:
        begin_with_weights(run, data.tokenizer, saver.state, ranks)
    data.close()
    engine.optimizer.settle()
    return engine


def our_logits(engine: Engine, tokens: torch.Tensor, path: LayerPath) -> torch.Tensor:
    (chunk,) = engine.model.chunks
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    mask = dense_mask(torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool), torch.float32)
    return chunk(tokens, positions, LayerInputs(mask, path))[..., :PIECES]


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("left_out", [(), LEFT_OUT], ids=["all layers", "a path"])
def test_logits_and_gradients_are_those_of_transformers(there, ranks, tmp_path, left_out, recompute):
    run = there.run(**{"model.recompute": recompute})
    engine = begun(run, ranks, tmp_path)
    tokens = torch.randint(0, PIECES, (2, 40), generator=torch.Generator().manual_seed(0))
    names = [name for name, _ in engine.model.named_parameters()]
    kept = [layer for layer in range(LAYERS) if layer not in left_out]
    path = LayerPath(tuple(layer in kept for layer in range(LAYERS)), (1.0,) * LAYERS)

    ours = our_logits(engine, tokens, path)
    loss = torch.nn.functional.cross_entropy(ours[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    grads = torch.autograd.grad(loss, [p for _, p in engine.model.named_parameters()], allow_unused=True)

    layers = there.theirs.model.layers
    there.theirs.model.layers = torch.nn.ModuleList([layers[layer] for layer in kept])
    there.theirs.zero_grad()
    theirs = there.theirs(tokens).logits
    their_loss = torch.nn.functional.cross_entropy(theirs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    their_loss.backward()
    there.theirs.model.layers = layers

    assert theirs.abs().max() > 0.5 and (ours - theirs).abs().max() < TOLERANCE
    table, found = decoder_table(run.recipe.model, PIECES), dict(there.theirs.named_parameters())
    compared = 0
    for name, gradient in zip(names, grads):
        if gradient is None:
            assert name.startswith(tuple(f"decoder.layers.{layer}." for layer in left_out)), name
            continue
        for theirs_name, part in taken_apart(table[name], gradient.numpy()):
            wanted = found[theirs_name].grad.numpy()
            assert abs(part - wanted).max() < TOLERANCE * max(1.0, abs(wanted).max()), theirs_name
            compared += 1
    per_layer = 9 + (2 if run.recipe.model.qk_norm else 0) + (3 if run.recipe.model.biases else 0)
    assert compared == len(kept) * per_layer + (2 if run.recipe.model.tied_embeddings else 3)


def test_added_pieces_begin_as_the_mean_of_the_others(there, ranks, tmp_path):
    vocabulary = load_tokenizer(there.folder).vocab_size
    engine = begun(there.run(**{"model.vocab_size": str(vocabulary)}), ranks, tmp_path)
    matrix = dict(engine.model.named_parameters())["embedding.word_embeddings.weight"].detach()
    theirs = there.theirs.get_input_embeddings().weight.detach()
    assert vocabulary > PIECES and torch.equal(matrix[:PIECES], theirs)
    assert torch.allclose(matrix[PIECES:vocabulary], theirs.mean(0), atol=1e-6)
    assert not torch.allclose(matrix[vocabulary:], theirs.mean(0), atol=1e-3), "what pads the vocabulary is as it was drawn"


FAULTS = {
    "a tensor is missing": ("lacks model.layers.3.mlp.up_proj.weight", {}),
    "one too many": ("holds model.layers.3.mlp.experts, for which the recipe's model has no place", {}),
    "another shape": (r"model.norm.weight is \[31\], and must be \[32\]", {}),
    "another base": ("model.rotary_base is 500000 there and 10000 here", {"model.rotary_base": "10000"}),
    "fewer layers": (
        "model.num_layers is 8 there and 4 here", {"model.num_layers": "4", "ds.progressive_subnetwork.path_lengths": "4"},
    ),
    "another tokenizer": ("its tokenizer.json is another than that of data.tokenizer", {}),
    "no weights": ("has neither model.safetensors nor .*pytorch_model.bin may run code", {}),
    "cut short": ("cannot be read as safetensors", {}),
    "an index that lies": ("lacks model.norm.weight, which model.safetensors.index.json says is there", {}),
    "a part is missing": ("model-00002-of-00002.safetensors", {}),
    "not a number": ("model.layers.2.mlp.up_proj.weight has numbers that are not finite", {}),
    "a length that is text": ('"max_position_embeddings" "x" is not a whole number', {}),
    "a switch that is text": ('"attention_bias" "false" is not true or false', {}),
    "a damaged index": ("index.json: damaged", {}),
    "an index that leads elsewhere": ("index.json: damaged", {}),
    "whole numbers": ("model.norm.weight is I32", {}),
    "another kind of model": ('"model_type" "gemma" is not read', {}),
    "no config": ("config.json: cannot be read", {}),
    "quantized": ("quantized weights are not read", {}),
    "another kind of scaling": ('"rope_type" "dynamic" is not here', {}),
    "a scaling that is not sharpened": ('"attention_factor" of rotary positions of type yarn is not here', {}),
    "a scaling that is not rounded": ('"truncate" is not here, but true', {}),
    "a factor that is text": ('describes no model that can be', {}),
    "an epsilon that is text": ('describes no model that can be .*norm_epsilon', {}),
    "a scaling that is a list": ('describes no model that can be', {}),
    "no heads": ('describes no model that can be', {}),
    "a number for a vector": (r"model.norm.weight is \[\], and must be \[32\]", {}),
    "weights of another model": ("holds bert.pooler.dense.weight, for which", {}),
    "a method that grows": (
        "init_from fills all 8 layers, and method stacking begins with 4",
        {"ds.progressive_subnetwork": "{method: stacking, path_lengths: 4-8}"},
    ),
}  # fmt: skip


@pytest.fixture
def llama(project, home, tmp_path) -> There:
    texts = [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]
    make_tokenizer(tmp_path / "llama", texts[:20])
    for name in ("train", "valid"):
        encode(str(home / f"{name}.jsonl"), load_tokenizer(tmp_path / "llama"), tmp_path / name)
    model = make_model("llama")
    model.save_pretrained(tmp_path / "llama")
    return There(tmp_path, "llama", model, project)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPE = {
    "a scaling that is not sharpened": YARN | {"attention_factor": 1.0},
    "a scaling that is not rounded": YARN | {"truncate": False},
    "a factor that is text": YARN | {"factor": "x"},
}


def spoil(folder: Path, fault: str) -> None:
    """Do to a folder what a test is named after."""
    file, index, config = folder / "model.safetensors", folder / "model.safetensors.index.json", folder / "config.json"
    weights, facts = load_file(file), json.loads(config.read_text())
    if fault == "a tensor is missing":
        del weights["model.layers.3.mlp.up_proj.weight"]
    elif fault == "one too many":
        weights["model.layers.3.mlp.experts"] = torch.ones(3)
    elif fault == "another shape":
        weights["model.norm.weight"] = torch.ones(31)
    elif fault == "a number for a vector":
        weights["model.norm.weight"] = torch.tensor(1.0)
    elif fault == "weights of another model":
        weights["bert.pooler.dense.weight"] = torch.ones(3)
    elif fault == "whole numbers":
        weights["model.norm.weight"] = torch.ones(32, dtype=torch.int32)
    elif fault == "not a number":
        weights["model.layers.2.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, file)
    if fault == "a part is missing":
        names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
        save_file(dict(sorted(weights.items())[:9]), folder / names[0])
        file.unlink()
        parts = {name: names[place >= 9] for place, name in enumerate(sorted(weights))}
        index.write_text(json.dumps({"weight_map": parts}))
    if fault == "another tokenizer":
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    elif fault == "no weights":
        file.rename(folder / "pytorch_model.bin")
    elif fault == "cut short":
        file.write_bytes(file.read_bytes()[:-1])
    elif fault == "an index that lies":
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, file.name)}))
        save_file({name: weight for name, weight in weights.items() if name != "model.norm.weight"}, file)
    elif fault == "a damaged index":
        index.write_text('{"weight_map": 3}')
    elif fault == "an index that leads elsewhere":
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "../llama/model.safetensors")}))
    elif fault == "another kind of model":
        facts["model_type"] = "gemma"
    elif fault == "a length that is text":
        facts["max_position_embeddings"] = "x"
    elif fault == "a switch that is text":
        facts["attention_bias"] = "false"
    elif fault == "quantized":
        facts["quantization_config"] = {"bits": 4}
    elif fault in ROPE:
        facts["rope_parameters"] = {"rope_theta": 5e5, **ROPE[fault]}
    elif fault == "an epsilon that is text":
        facts["rms_norm_eps"] = "1e-6"
    elif fault == "a scaling that is a list":
        facts["rope_scaling"] = ["yarn"]
    elif fault == "no heads":
        facts["num_attention_heads"] = 0
    elif fault == "another kind of scaling":
        facts["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}
    config.write_text(json.dumps(facts))
    if fault == "no config":
        config.unlink()


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_one_line(llama, ranks, tmp_path, fault):
    message, changed = FAULTS[fault]
    if fault == "a method that grows":
        with pytest.raises(UserError, match=message):
            llama.run(**changed)
        return
    run = llama.run(**changed)
    if fault == "another tokenizer":
        (tmp_path / "other").mkdir()
        for file in llama.folder.glob("tokenizer*"):
            (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
        run = llama.run(**{"data.tokenizer": str(tmp_path / "other")})
    spoil(llama.folder, fault)
    with pytest.raises(UserError, match=message) as error:
        begun(run, ranks, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_window_that_a_config_leaves_out_is_mistrals_own(project, home, tmp_path):
    config = json.loads((save_mistral(tmp_path) / "config.json").read_text())
    del config["sliding_window"]
    run = project.run(*(f"{key}={value}" for key, value in settings("mistral", tmp_path).items()), "data.sequence_length=4097")
    with pytest.raises(UserError, match="its attention sees 4096 positions"):
        require_same(run.recipe, config, tmp_path / "mistral")
    del config["num_key_value_heads"]
    with pytest.raises(UserError, match='has no "num_key_value_heads"'):
        model_keys(config, tmp_path / "mistral")


def save_mistral(at: Path) -> Path:
    make_model("mistral").save_pretrained(at / "mistral")
    return at / "mistral"
