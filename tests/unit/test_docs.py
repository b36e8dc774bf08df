"""Links of README and docs lead somewhere, their prose has one width, and tests keep what they promise."""

import argparse
import re
from pathlib import Path

import pytest

from pretrain.cli import train
from pretrain.config.command_line import all_settings

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PAGES = sorted(page for pattern in ("*.md", "docs/**/*.md", "bench/**/*.md") for page in Path().glob(pattern))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Links of a page to files or headings that do not exist; what lies outside the repository is not looked at."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One heading\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md) [y](b.md#one-heading) [z](c.md) [w](b.md#two) [v](https://example.org)\n```\n[u](d.md)\n```\n")
    assert dead_links(page) == ["c.md", "b.md#two"]


KEPT_BY = re.findall(r"`([\w/]+\.py)::(test_\w+)`", Path("docs/promises.md").read_text())


@pytest.mark.parametrize("file, test", KEPT_BY, ids=str)
def test_a_promise_is_kept_by_a_test_that_exists(file, test):
    assert re.search(rf"^def {test}\(", (Path("tests") / file).read_text(), re.MULTILINE)


def test_every_promise_names_a_test():
    rows = [
        line
        for line in Path("docs/promises.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 40 and all("::test_" in row for row in rows)


def test_every_key_of_ours_in_the_tables_of_other_programs_is_there():
    """The last column of docs/coming_from.md."""
    options = {option for action in _train_parser()._actions for option in action.option_strings}
    known = {key.removeprefix("--") for key, _ in all_settings()} | options | {"--tokens"}
    cells = [line.split("|")[-2] for line in Path("docs/coming_from.md").read_text().splitlines() if line.startswith("| ")]
    named = [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]
    values = {"gelu", "warmup_type", "--tokens 32B"}
    assert len(named) > 40 and [key for key in named if key not in known | values] == []


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    train.arguments(parser)
    return parser


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_prose_ends_at_the_width(page):
    """Tables, code and pictures cannot be wrapped."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    assert [line for line in prose if len(line) > 130 and not line.lstrip().startswith(("|", "!["))] == []
