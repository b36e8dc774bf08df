"""`new`: write a recipe and its JSON for a person's own data."""

import argparse
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.config.checks import check
from pretrain.config.command_line import option_pairs
from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.model import Model
from pretrain.config.read import json_of, parse_run
from pretrain.config.recipe import MACHINE, Recipe, find_recipe, shipped_recipes
from pretrain.config.run import Run
from pretrain.config.strict import COMMAND_LINE, read_json, read_yaml, set_key
from pretrain.config.write import fitted, json_text, recipe_text, scaled_paths
from pretrain.errors import UserError
from pretrain.files import write_whole

HELP = "write a recipe and its JSON for own data"
EPILOG = "Any field of the recipe is an option here too, as --steps or --data.objective; any key of the JSON after --ds."
OPTIONS = ("like", "init-from", "tokenizer", "valid")
EXAMPLE = "`python -m pretrain new mine --like llama_1b --tokenizer data/tokenizer --data data/train`"
DECODER, BERT = "llama_1b", "bert_base"
"""Recipes that say what a folder of Hugging Face's does not: lengths, rates, batches."""
MOST_READ = 4
"""Times that text is read before `new` says that this is often."""
MULTIPLE = 128
"""What rows of the embedding are padded to a multiple of, so that tensor ranks can split them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="writes NAME.yaml and NAME.json; a path, if you like")
    parser.add_argument("--like", metavar="RECIPE|FOLDER", help="a recipe, or a folder of Hugging Face's whose shape is taken")
    parser.add_argument("--init-from", metavar="FOLDER", help="a folder of Hugging Face's, for its shape, weights and tokenizer")
    parser.add_argument("--tokenizer", metavar="DIR", help="the folder by which the data was encoded")
    parser.add_argument("--data", metavar="PREFIX", help="token files to train on, as data/train")
    parser.add_argument("--valid", metavar="PREFIX", help="token files that are held out; else the end of the others is")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    path = _path(args)
    pairs = [(option.removeprefix("--").replace("-", "_"), value) for option, value in option_pairs(rest, OPTIONS)]
    recipe, ds = _contents(args, pairs)
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    texts = _texts(path, recipe, ds, args)
    run = _checked(path, texts)
    if "eval_samples" not in dict(pairs) and (fewer := _fewer_held_out(run)):
        recipe["eval_samples"] = fewer
        texts = _texts(path, recipe, ds, args)
        run = _checked(path, texts)
    _require_data(run)
    from pretrain.plan.show import print_plan

    print_plan(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    for end in (".json", ".yaml"):
        write_whole(path.with_name(path.name + end), texts[end])
    name = shlex.quote(str(path.with_name(f"{path.name}.yaml")))
    train = f"-m pretrain train {name} --run-dir runs/{shlex.quote(path.name)}"
    print(f"\n{name} and its JSON are there, and fit the data. To train on 8 GPUs, or in one process:")
    print(f"torchrun --standalone --nproc-per-node 8 {train}\npython {train}")
    return 0


def _path(args: argparse.Namespace) -> Path:
    """NAME, once it is clear that it can be written.

    Raises:
        UserError: it cannot, or something is not said.
    """
    name = args.name
    if name is None or args.words.index(args.command) + 1 != args.words.index(name):
        raise UserError(f"{COMMAND_LINE}: the name of the new recipe comes first, as in {EXAMPLE}")
    path = Path(name.removesuffix(".yaml").removesuffix(".json"))
    if path.name in ("", ".."):
        raise UserError(f"{COMMAND_LINE}: {name} is no name of a file; give one, as in {EXAMPLE}")
    if str(path) in shipped_recipes():
        raise UserError(f"{COMMAND_LINE}: {path} is a recipe that is here already; choose another name")
    if args.like is None and args.init_from is None:
        raise UserError(f"{COMMAND_LINE}: --like or --init-from says what it is to be like, as in {EXAMPLE}")
    if args.data is None or (args.tokenizer is None and args.init_from is None):
        raise UserError(f"{COMMAND_LINE}: --data and --tokenizer say what is trained on, as in {EXAMPLE}")
    if args.valid is not None and args.valid == args.data:
        raise UserError(
            f"{COMMAND_LINE}: --valid {args.valid} is what is trained on; leave it out, and the end of it is held out"
        )
    for end in (".yaml", ".json"):
        if (file := path.with_name(path.name + end)).exists():
            raise UserError(f"{file}: exists; remove it or choose another name")
    return path


def _contents(args: argparse.Namespace, pairs: list[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both files hold."""
    like, folder = args.like, args.init_from
    if like is not None and like not in shipped_recipes() and Path(like).is_dir():
        if folder is not None:
            raise UserError(f"{COMMAND_LINE}: --like {like} and --init-from {folder} both say a shape; give a recipe with --like")
        like, folder = None, like
    config: dict[str, Any] = {}
    if folder is not None:
        from pretrain.hugging_face.settings import model_keys, other_class, read_config

        config = read_config(Path(folder))
    file = find_recipe(like or (BERT if config.get("model_type") == "megatron-bert" else DECODER))
    recipe, ds = read_yaml(file), read_json(json_of(file))
    layers = recipe["model"]["num_layers"]
    if folder is not None:
        keys = model_keys(config, Path(folder))
        recipe["model"] = {key: value for key, value in keys.items() if value != Model.model_fields[key].default}
        known = [config.get("max_position_embeddings"), _window(config), recipe["data"]["sequence_length"]]
        recipe["data"]["sequence_length"] = min(length for length in known if length is not None)
        if args.init_from:
            own = other_class(config, keys)
            recipe = {"init_from": folder, **({"export_as": own} if own else {}), **recipe}
    others = {key: value for key, value in recipe["data"].items() if key not in ("tokenizer", "train", "valid", "sources")}
    held_out = {"valid": args.valid} if args.valid else {"valid_share": 0.005}
    data = {"tokenizer": args.tokenizer or args.init_from, "train": args.data, **held_out}
    recipe["data"] = {"objective": "ul2", **data, **others}
    before = dict(recipe["model"])
    for key, value in pairs:
        if key == "tokens":
            raise UserError(f"{COMMAND_LINE}: --tokens belongs to `train`; a recipe has steps")
        if key.startswith("ds."):
            set_key(ds, DeepSpeedConfig, key.removeprefix("ds."), value, "--" + key)
        else:
            set_key(recipe, Recipe, key, value, "--" + key)
    given = {key for key, _ in pairs}
    recipe["model"] = fitted(recipe["model"], before, {key.removeprefix("model.") for key in given})
    if not given & {"ds.progressive_subnetwork", "ds.progressive_subnetwork.path_lengths"}:
        ds["progressive_subnetwork"] = scaled_paths(ds["progressive_subnetwork"], layers, recipe["model"]["num_layers"])
    if "model.vocab_size" not in given:
        _count_pieces(recipe, keeps_padding="model.padded_vocab_size" in given)
    return recipe, ds


def _window(config: Mapping[str, Any]) -> int | None:
    return config.get("sliding_window") if config.get("use_sliding_window", True) else None


def _count_pieces(recipe: dict[str, Any], keeps_padding: bool) -> None:
    """The tokenizer says how large the vocabulary is; with the pieces that objectives add, where the objective is not causal."""
    from tokenizer.load import load_tokenizer

    data, model = recipe["data"], recipe["model"]
    if data["tokenizer"] == MACHINE:
        return
    tokenizer = load_tokenizer(Path(data["tokenizer"]))
    model["vocab_size"] = tokenizer.own_pieces if data["objective"] == "causal" else tokenizer.vocab_size
    if not keeps_padding:
        model["padded_vocab_size"] = -(-model["vocab_size"] // MULTIPLE) * MULTIPLE


def _texts(path: Path, recipe: Mapping[str, Any], ds: Mapping[str, Any], args: argparse.Namespace) -> dict[str, str]:
    remark = (
        f"Written by `python -m pretrain new`, like {args.init_from or args.like}. `python -m pretrain train --explain` lists"
        f" what else there is. {path.name}.json beside it says how it is optimised."
    )
    return {".yaml": recipe_text(recipe, remark), ".json": json_text(ds)}


def _checked(path: Path, texts: Mapping[str, str]) -> Run:
    """The run that both files say, read as `train` would read them.

    Raises:
        UserError: something is wrong.
    """
    with tempfile.TemporaryDirectory() as work:
        for end, text in texts.items():
            (Path(work) / f"{path.name}{end}").write_text(text, encoding="utf-8")
        try:
            run = parse_run(str(Path(work) / f"{path.name}.yaml"), [], None, None)
            check(run)
            return run
        except UserError as error:
            raise UserError(str(error).replace(f"{work}/", "")) from None


def _fewer_held_out(run: Run) -> int:
    """Return how many samples are held out, if that is fewer than an evaluation has, and some; else 0."""
    from pretrain.data.loader import held_out_samples

    there = held_out_samples(run)
    return there if 0 < there < run.recipe.eval_samples else 0


def _require_data(run: Run) -> None:
    """Refuse data, tokenizer or weights that `train` would refuse; says how often the data will be read.

    Raises:
        UserError: something is missing, or does not fit.
    """
    from pretrain.data.loader import open_data

    data = open_data(run)
    data.close()
    if run.recipe.init_from is not None:
        from pretrain.hugging_face.source import Source

        Source(Path(run.recipe.init_from), run, data.tokenizer)
    tokens = sum(len(samples.stream) for samples in data.train.sources)
    planned = run.steps * run.tokens_per_step
    often = f"; beyond some {MOST_READ} times text teaches less (arXiv 2305.16264)" if planned > MOST_READ * tokens else ""
    print(f"{planned:,} positions in {run.steps:,} steps: {planned / tokens:,.1f} times the {tokens:,} tokens there are{often}\n")
