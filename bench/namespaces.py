"""Two network namespaces on one machine, joined by a link of a set rate. Needs root, `ip` and `tc` (Debian's iproute2)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


class LinkError(Exception):
    """This machine cannot make the link."""


def why_not() -> str | None:
    """Return why a link cannot be made here; None if it can."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found; install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with link(1000):
            return None
    except LinkError as error:
        return str(error)


@contextmanager
def link(mbit: int | None) -> Iterator[list[str]]:
    """Two namespaces on a link of `mbit` Mbit/s each way, None for no limit; their names, which are also those of their
    devices.

    Raises:
        LinkError: with the command that failed.
    """
    names = [f"replica{n}x{os.getpid() % 10000}" for n in (0, 1)]
    devices = [name[:15] for name in names]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1])
        for n, (name, device) in enumerate(zip(names, devices)):
            inside = ["ip", "netns", "exec", name]
            _run(*inside, "ip", "address", "add", f"10.91.7.{n + 1}/24", "dev", device)
            for up in (device, "lo"):
                _run(*inside, "ip", "link", "set", up, "up")
            if mbit is not None:
                limit = ["rate", f"{mbit}mbit", "burst", "256kb", "latency", "400ms"]
                _run(*inside, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise LinkError(f"{' '.join(words)}: {done.stderr.strip()}")
