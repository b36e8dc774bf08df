"""python -m pretrain train | plan | advise | evaluate | compare ...: every command is in COMMANDS."""

import argparse
import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from types import ModuleType

from pretrain import progress
from pretrain.cli import advise, compare, evaluate, export, generate, inspect, job, new, plan, report, status, train, verify
from pretrain.cli.arguments import Parser
from pretrain.errors import TrainingStopped, UserError, lost_a_peer, one_line, reason
from pretrain.place import rank_here
from pretrain.streams import accept_any_text

COMMANDS: dict[str, ModuleType] = {
    "new": new,
    "train": train,
    "plan": plan,
    "advise": advise,
    "inspect": inspect,
    "verify": verify,
    "export": export,
    "evaluate": evaluate,
    "generate": generate,
    "status": status,
    "compare": compare,
    "report": report,
    "job": job,
}
"""Each module has HELP, `arguments(parser)` and `run(args, rest)`; `rest` are words that are settings of recipe and JSON."""
LAUNCHED = ("train", "evaluate", "generate")
"""Commands of several processes; others are one, whatever a launcher has left in its environment."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES}
"""What a file system reports that cannot be written to; it is the user's to fix, and a traceback helps nobody."""

NO_SUCH_PLACE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}
"""What it reports of a path that cannot be one."""
RANK_0_SPEAKS_WITHIN = 10
"""Seconds. Launchers end all ranks when the first is gone, which must not happen before rank 0 has said why; and where it never
does, another says it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it ended well, 2 for a mistake of the user's, 1 for a run that could not continue."""
    accept_any_text()
    words = list(sys.argv[1:] if argv is None else argv)
    rank = rank_here(os.environ) if words and words[0] in LAUNCHED else 0
    _report = partial(_say, rank)
    parser = _parser()
    try:
        args, rest = parser.parse_known_args(words)
        if args.command is None:
            parser.print_help()
            return 2
        args.words = words
        progress.show(rank == 0 and not getattr(args, "quiet", True))
        return COMMANDS[args.command].run(args, rest)
    except UserError as error:
        _report(f"error: {error}")
        return 2
    except TrainingStopped as stopped:
        _report(f"stopped: {stopped}", stopped.everywhere)
        return 1
    except KeyboardInterrupt:
        _report("interrupted")
        return 130
    except RuntimeError as error:
        if not lost_a_peer(error):
            raise
        _report(f"stopped: another rank is gone ({one_line(error)}); it, or the launcher, reports why", everywhere=False)
        return 1
    except OSError as error:
        if error.errno in NO_SUCH_PLACE:
            _report(f"error: {error.filename or 'a file'}: {reason(error)}", everywhere=False)
            return 2
        if error.errno not in NO_ROOM:
            raise
        _report(f"stopped: {error.filename or 'a file'} cannot be written: {reason(error)}", everywhere=False)
        return 1
    finally:
        progress.show(False)  # whoever calls this as a library stays silent


def _say(rank: int, text: str, everywhere: bool = True) -> None:
    """Print once for all ranks where all came to the same conclusion; else each for itself."""
    if rank and everywhere:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(RANK_0_SPEAKS_WITHIN)  # most launchers end this process meanwhile
    print(text if rank == 0 else f"rank {rank}: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m pretrain", allow_abbrev=False, description=__doc__)
    commands = parser.add_subparsers(dest="command")
    for name, module in COMMANDS.items():
        epilog = getattr(module, "EPILOG", None)
        module.arguments(commands.add_parser(name, help=module.HELP, allow_abbrev=False, epilog=epilog))
    return parser
