"""python -m tokenizer train | encode"""

import argparse
import sys
import warnings
from pathlib import Path

from pretrain.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train a sentencepiece model", allow_abbrev=False)
    train.add_argument("--input", required=True, metavar="GLOB", help='JSON lines with a "text" field')
    train.add_argument("--vocab-size", required=True, type=int, help="pieces, reserved ones included")
    train.add_argument("--out", required=True, type=Path, help="folder to write")
    train.add_argument("--model-type", choices=("unigram", "bpe"), default="unigram")

    encode = commands.add_parser("encode", help="encode documents into PREFIX.bin and PREFIX.idx", allow_abbrev=False)
    encode.add_argument("--input", required=True, metavar="GLOB", help='JSON lines with a "text" field')
    encode.add_argument("--tokenizer", required=True, type=Path, help="folder written by train")
    encode.add_argument("--out", required=True, type=Path, metavar="PREFIX")

    args = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"megatron\.")  # notices about extensions that play no part here
    try:
        if args.command == "train":
            from tokenizer.train import train as run_train

            run_train(args.input, args.vocab_size, args.out, args.model_type)
            print(f"tokenizer of {args.vocab_size} pieces in {args.out}")
        else:
            from tokenizer.encode import encode as run_encode
            from tokenizer.pieces import load_tokenizer

            made = run_encode(args.input, load_tokenizer(args.tokenizer), args.out)
            print(f"{made['documents']} documents, {made['tokens']} tokens in {args.out}.bin")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
