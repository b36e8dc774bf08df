"""python -m pretrain"""

import os
import signal
import sys
from types import FrameType


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End at once, until training takes its signals over: a KeyboardInterrupt amid an import can come out as any
    error."""
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupted)
    from pretrain.cli.main import main

    sys.exit(main())
