"""`export`: write a folder for Hugging Face's libraries."""

import argparse
from pathlib import Path

from pretrain.cli.arguments import checkpoint_argument, quiet_argument, require_nothing_else

HELP = "write a folder for Hugging Face's libraries"


def arguments(parser: argparse.ArgumentParser) -> None:
    checkpoint_argument(parser)
    quiet_argument(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--as",
        dest="wanted",
        metavar="CLASS",
        help="class of transformers, where several compute the same; the recipe's export_as",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights; masters are float32")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    import torch

    from pretrain.export.huggingface import export

    print(f"{args.to}: written from {export(args.run, args.to, getattr(torch, args.dtype), args.force, args.wanted)}")
    return 0
