"""python -m pretrain"""

import os
import signal
import sys
import traceback
from types import FrameType


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End at once, until training takes its signals over: a KeyboardInterrupt amid an import can come out as any
    error."""
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(130)


def _end(code: int) -> None:
    """End the process, at once if it still has groups of ranks: it has failed, and to take them down it would wait for others."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        from pretrain.ranks.caches import remove_caches

        remove_caches()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main() -> None:
    signal.signal(signal.SIGINT, _interrupted)
    from pretrain.cli.main import main

    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    _end(code)


if __name__ == "__main__":
    main()
