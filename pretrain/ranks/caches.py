"""Where compiled code is kept: on the node's own disk, for one launch."""

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

PREFIX = "pretrain-caches-"
OLD_SECONDS = 24 * 3600
CACHES = {"TORCH_EXTENSIONS_DIR": "extensions", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


def prepare_caches() -> None:
    """A folder for the processes of this launch on this node, where the user has named none; gone when they have ended.

    The libraries' own choice is the home directory, slow on many clusters and shared by all jobs: one that is killed leaves a
    lock there, on which the next would wait for ever.
    """
    missing = [name for name in CACHES if name not in os.environ]
    if not missing:
        return
    folder = _folder()
    for name in missing:
        os.environ[name] = str(folder / CACHES[name])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _OWN.append(folder)
        atexit.register(remove_caches)


_OWN: list[Path] = []
"""The folder that this process removes."""


def remove_caches() -> None:
    """Remove the folder of this launch on this node, if it is for this process to do."""
    for folder in _OWN:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    """Named after the process that all of this launch on this node have come from: its parent, or itself if it is alone."""
    alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
    owner = psutil.Process(os.getpid() if alone else os.getppid())
    home = Path(tempfile.gettempdir())
    _sweep(home)
    words = (os.getuid(), owner.pid, int(owner.create_time()), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    folder = home / f"{PREFIX}{'-'.join(map(str, words))}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():  # code is loaded from there: nobody else may have put it there
        return Path(tempfile.mkdtemp(prefix=PREFIX))
    return folder


def _sweep(home: Path) -> None:
    """Remove what killed launches have left, a day after: other containers have process numbers of their own."""
    for folder in home.glob(f"{PREFIX}{os.getuid()}-*-*-*"):
        pid, begun = folder.name.removeprefix(PREFIX).split("-")[1:3]
        try:
            gone = int(psutil.Process(int(pid)).create_time()) != int(begun)
        except psutil.NoSuchProcess:
            gone = True
        except (ValueError, psutil.Error):
            continue
        if gone and time.time() - folder.stat().st_mtime > OLD_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
