"""`verify`: read every byte of a run's checkpoints."""

import argparse

from pretrain.cli.arguments import checkpoint_argument, quiet_argument, require_nothing_else

HELP = "read every byte of a run's checkpoints"


def arguments(parser: argparse.ArgumentParser) -> None:
    checkpoint_argument(parser)
    quiet_argument(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    from pretrain.inspect.checkpoint import verify

    return 1 if verify(args.run) else 0
