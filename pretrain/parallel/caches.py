"""Where compiled code is kept: on the node's own disk, for one launch."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import psutil

CACHES = {"TORCH_EXTENSIONS_DIR": "extensions", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


def prepare_caches() -> None:
    """A folder for the processes of this launch on this node, where the user has named none; gone when they have ended.

    The libraries' own choice is the home directory, slow on many clusters and shared by all jobs: one that is killed leaves a lock there,
    on which the next would wait for ever.
    """
    missing = [name for name in CACHES if name not in os.environ]
    if not missing:
        return
    folder = _folder()
    for name in missing:
        os.environ[name] = str(folder / CACHES[name])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _folder() -> Path:
    """Processes of a launch have the same parent; when it began tells it from an earlier one of the same number."""
    if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        parent = psutil.Process(os.getppid())
        words = (os.getuid(), parent.pid, int(parent.create_time()), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        folder = Path(tempfile.gettempdir()) / f"pretrain-caches-{'-'.join(map(str, words))}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid():  # code is loaded from there: nobody else may have put it there
            return folder
    return Path(tempfile.mkdtemp(prefix="pretrain-caches-"))
