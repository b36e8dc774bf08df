"""python -m tokenizer train | encode

`encode` also runs under mpiexec -n N or srun, with the same options.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

from pretrain import progress
from pretrain.errors import UserError, with_file
from pretrain.streams import accept_any_text
from tokenizer.files import READABLE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train a sentencepiece model", allow_abbrev=False)
    train.add_argument(
        "--input", required=True, nargs="+", metavar="GLOB", help=f'{READABLE}; a document a line, of JSON and Parquet its "text"'
    )
    train.add_argument("--vocab-size", required=True, type=int, help="pieces, reserved ones included")
    train.add_argument("--out", required=True, type=Path, help="folder to write")
    train.add_argument("--model-type", choices=("unigram", "bpe"), default="unigram")
    train.add_argument(
        "--sample-mb", type=float, metavar="MB", help="learn from a random part of the documents, of so many megabytes"
    )

    encode = commands.add_parser("encode", help="encode documents into PREFIX.bin and PREFIX.idx", allow_abbrev=False)
    encode.add_argument("--input", required=True, nargs="+", metavar="GLOB", help="as for train")
    encode.add_argument("--tokenizer", required=True, type=Path, help="folder written by train")
    encode.add_argument("--out", required=True, type=Path, metavar="PREFIX")
    for command in (train, encode):
        command.add_argument(
            "--on-error",
            choices=("stop", "skip"),
            default="stop",
            help="a document that cannot be read: stop, or count and list it",
        )
        command.add_argument("--quiet", action="store_true", help="do not show how far it is")

    args = parser.parse_args()
    progress.show(not args.quiet)
    accept_any_text()  # names of files may be any bytes
    warnings.filterwarnings("ignore", module=r"megatron\.")  # notices about extensions that play no part here
    try:
        return _train(args) if args.command == "train" else _encode(args)
    except KeyboardInterrupt:
        print(
            "interrupted" + ("; finished blocks stay, and the same command resumes" if args.command == "encode" else ""),
            file=sys.stderr,
            flush=True,
        )
        os._exit(130)  # an MPI launcher takes the other ranks down, and waiting for them is no use


def _train(args: argparse.Namespace) -> int:
    from tokenizer.team import join
    from tokenizer.train import train

    try:
        team = join()
        if team.size > 1:
            raise UserError("training is for one process; start it without mpiexec or srun")
        if args.sample_mb is not None and not 0 < args.sample_mb < 1e9:
            raise UserError(f"--sample-mb {args.sample_mb:g}: must be above 0")
        sample_bytes = None if args.sample_mb is None else round(args.sample_mb * 1e6)
        how = {"sample_bytes": sample_bytes, "on_error": args.on_error, "quiet": args.quiet}
        manifest = train(args.input, args.vocab_size, args.out, args.model_type, **how)
        bad = manifest["bad_documents"]
        print(
            f"tokenizer of {args.vocab_size} pieces in {args.out}"
            + (f"; {len(bad)} bad documents, listed in its tokenizer.json" if bad else "")
        )
        return 0
    except (UserError, OSError) as error:
        return _tell(error)


def _encode(args: argparse.Namespace) -> int:
    from tokenizer.encode import encode
    from tokenizer.load import load_tokenizer
    from tokenizer.team import join

    team = None
    try:
        team = join()
        tokenizer = team.on_main(lambda: load_tokenizer(args.tokenizer))
        encode(args.input, tokenizer, args.out, args.on_error, team, quiet=args.quiet)
        return 0
    except UserError as error:  # all ranks have come to it
        return _tell(error) if team is None or team.is_main else 2
    except OSError as error:
        _tell(error)
        if team is not None and team.comm is not None:
            team.comm.Abort(2)  # the others wait
        return 2


def _tell(error: UserError | OSError) -> int:
    text = str(error) if isinstance(error, UserError) else with_file(error)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return 2


def run() -> None:
    """Start `pretrain-tokenizer`, as an installed package has it."""
    sys.exit(main())


if __name__ == "__main__":
    run()
