"""Pieces of a page."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path


def text(value: object) -> str:
    """Return what shows a value as it is."""
    return html.escape(str(value))


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are HTML already."""
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in body)
    return f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead><tbody>{lines}</tbody></table>"


def figure(file: Path, caption: str) -> str:
    """Return a picture, within the page."""
    content = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{content}"'
        f' alt="{text(caption)}"><figcaption>{text(caption)}</figcaption></figure>'
    )
