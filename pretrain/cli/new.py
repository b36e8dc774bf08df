"""`new`: write a recipe and its JSON for a person's own data."""

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.config.checks import check
from pretrain.config.command_line import option_pairs
from pretrain.config.deepspeed import DeepSpeedConfig
from pretrain.config.read import json_of, parse_run
from pretrain.config.recipe import MACHINE, Recipe, find_recipe
from pretrain.config.run import Run
from pretrain.config.strict import COMMAND_LINE, read_json, read_yaml, set_key
from pretrain.config.write import json_text, recipe_text, scaled_paths
from pretrain.errors import UserError

HELP = "write a recipe and its JSON for own data"
EPILOG = "Any field of the recipe is an option here too, as --steps or --data.objective; any key of the JSON after --ds."
OPTIONS = ("like", "tokenizer", "data", "valid")
DECODER, BERT = "llama_1b", "bert_base"
"""Recipes that say what a folder of Hugging Face's does not: lengths, rates, batches."""
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
    _require_sensible(args)
    pairs = option_pairs(rest, OPTIONS)
    recipe, ds = _contents(args)
    for option, value in pairs:
        key = option.removeprefix("--").replace("-", "_")
        if key == "tokens":
            raise UserError(f"{COMMAND_LINE}: --tokens belongs to `train`; a recipe has steps")
        if key.startswith("ds."):
            set_key(ds, DeepSpeedConfig, key.removeprefix("ds."), value, "--" + key)
        else:
            set_key(recipe, Recipe, key, value, "--" + key)
    _count_pieces(recipe)
    written = _written(Path(args.name), recipe, ds, args)
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.plan.show import print_plan

    print_plan(written)
    name = Path(args.name).with_name(f"{Path(args.name).name}.yaml")
    print(f"\n{name} and {name.with_suffix('.json')} are yours to edit; torchrun ... -m pretrain train {name} trains it")
    return 0


def _require_sensible(args: argparse.Namespace) -> None:
    name, example = args.name, "`python -m pretrain new mine --like llama_1b --tokenizer data/tokenizer --data data/train`"
    if name is None or args.words.index(args.command) + 1 != args.words.index(name):
        raise UserError(f"{COMMAND_LINE}: the name of the new recipe comes first, as in {example}")
    if args.like is None and args.init_from is None:
        raise UserError(f"{COMMAND_LINE}: --like or --init-from says what it is to be like, as in {example}")
    if args.data is None or (args.tokenizer is None and args.init_from is None):
        raise UserError(f"{COMMAND_LINE}: --data and --tokenizer say what is trained on, as in {example}")
    for end in (".yaml", ".json"):
        if (file := Path(name).with_name(Path(name).name + end)).exists():
            raise UserError(f"{file}: exists; remove it or choose another name")


def _contents(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both files hold before own settings."""
    folder = next((Path(name) for name in (args.init_from, args.like) if name and Path(name).is_dir()), None)
    if args.init_from and folder != Path(args.init_from):
        raise UserError(f"{COMMAND_LINE}: --init-from {args.init_from}: is no folder")
    model: dict[str, Any] | None = None
    config: dict[str, Any] = {}
    if folder is not None:
        from pretrain.hugging_face.settings import model_keys, other_class, read_config

        config = read_config(folder)
        model = model_keys(config, folder)
    is_recipe = args.like is not None and not Path(args.like).is_dir()
    like = find_recipe(args.like if is_recipe else BERT if config.get("model_type") == "megatron-bert" else DECODER)
    recipe, ds = read_yaml(like), read_json(json_of(like))
    layers = recipe["model"]["num_layers"]
    if model is not None:
        recipe["model"] = {key: value for key, value in model.items() if value != _default(key)}
        known = config.get("max_position_embeddings") or recipe["data"]["sequence_length"]
        recipe["data"]["sequence_length"] = min(known, recipe["data"]["sequence_length"])
    if args.init_from:
        assert model is not None, "its config has been read"
        own = other_class(config, model)
        recipe = {"init_from": args.init_from, **({"export_as": own} if own else {}), **recipe}
    ds["progressive_subnetwork"] = scaled_paths(ds["progressive_subnetwork"], layers, recipe["model"]["num_layers"])
    data = {"tokenizer": args.tokenizer or args.init_from, "train": args.data}
    others = {key: value for key, value in recipe["data"].items() if key not in ("tokenizer", "train", "valid", "sources")}
    recipe["data"] = {**data, **({"valid": args.valid} if args.valid else {}), **others}
    return recipe, ds


def _default(key: str) -> object:
    from pretrain.config.model import Model

    field = Model.model_fields[key]
    return None if field.is_required() else field.default


def _count_pieces(recipe: dict[str, Any]) -> None:
    """The tokenizer says how large the vocabulary is; with the pieces that objectives add, where the objective is not causal."""
    from tokenizer.load import load_tokenizer

    data, model = recipe["data"], recipe["model"]
    if data["tokenizer"] == MACHINE:
        return
    tokenizer = load_tokenizer(Path(data["tokenizer"]))
    pieces = tokenizer.own_pieces if data.get("objective", "ul2") == "causal" else tokenizer.vocab_size
    model["vocab_size"], model["padded_vocab_size"] = pieces, -(-pieces // MULTIPLE) * MULTIPLE


def _written(path: Path, recipe: Mapping[str, Any], ds: Mapping[str, Any], args: argparse.Namespace) -> Run:
    """Check both files and put them in their place; neither is there unless both are right."""
    remark = (
        f"Written by `python -m pretrain new`, like {args.init_from or args.like}. `python -m pretrain train --explain` lists"
    )
    texts = {
        ".yaml": recipe_text(recipe, f"{remark} what else there is. {path.name}.json beside it says how it is optimised."),
        ".json": json_text(ds),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as work:
        for end, text in texts.items():
            (Path(work) / f"{path.name}{end}").write_text(text, encoding="utf-8")
        try:
            run = parse_run(str(Path(work) / f"{path.name}.yaml"), [], None, None)
            check(run)
        except UserError as error:
            raise UserError(str(error).replace(f"{work}/", "")) from None
        for end in texts:
            os.replace(Path(work) / f"{path.name}{end}", path.with_name(f"{path.name}{end}"))
    return run
