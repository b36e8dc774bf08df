"""What people see of something long: a bar on a terminal, lines in a log, nothing where nobody asked."""

import os
import pty
import subprocess
import sys

import pytest

from pretrain import progress
from pretrain.cli.main import main
from pretrain.progress import BYTES, bar, rate

WORK = """
import sys, time
from pretrain import progress
from pretrain.progress import bar
progress.show(sys.argv[1] == "shown")
progress.EVERY_SECONDS = 0.05
with bar("reading", 10, "files") as shown:
    for _ in range(10):
        time.sleep(0.02)
        shown.add()
"""


def on_terminal(*words: str) -> str:
    """What a process writes whose standard error is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", WORK, *words], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    found = b""
    try:
        while part := os.read(ours, 4096):
            found += part
    except OSError:
        pass  # the other end is closed
    assert process.wait() == 0
    os.close(ours)
    return found.decode()


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    found = on_terminal("shown")
    assert "reading" in found and "files/s" in found and "\x1b" in found and "0:00:0" in found
    assert on_terminal("not") == ""


def test_a_log_gets_lines_without_colours():
    done = subprocess.run([sys.executable, "-c", WORK, "shown"], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 5 and all(line.startswith("reading: ") and "min left" in line for line in lines)
    assert "\x1b" not in done.stderr and done.stdout == ""
    assert subprocess.run([sys.executable, "-c", WORK, "not"], capture_output=True, text=True).stderr == ""


def test_a_title_says_what_a_bar_is_of(monkeypatch, capsys):
    monkeypatch.setattr(progress._Shown, "on", True)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    with progress.titled("arc_easy, 1 of 2"), bar("scoring", 2, "contexts") as shown:
        shown.add()
    with bar("reading", 2, "files") as shown:
        shown.add()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("arc_easy, 1 of 2: scoring: 50 %") and second.startswith("reading: 50 %")


def test_a_command_leaves_the_library_silent(tmp_path):
    assert main(["verify", str(tmp_path)]) == 2
    assert not progress._Shown.on


def test_a_library_shows_nothing(capsys):
    assert not progress._Shown.on
    with bar("reading", 1, BYTES) as shown:
        shown.add()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("speed", "unit", "text"), [(2.5e6, BYTES, "2.5 MB/s"), (1234.0, "tasks", "1,234 tasks/s"), (0.25, "tasks", "0.25 tasks/s")]
)
def test_rates_in_words(speed, unit, text):
    assert rate(speed, unit) == text
