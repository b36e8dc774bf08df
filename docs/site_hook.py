"""What mkdocs.yml adds to the pages of docs/: the README as the first page, and a page of docstrings for every folder of code."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, which nothing on disk holds."""
    readme = Path("README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    for page in config.nav[-1]["Code"]:
        folder = Path(page).stem
        files.append(File.generated(config, page, content=f"# {folder}\n\n::: {folder}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links to files outside docs/ as plain text: the site holds the pages alone, not the repository."""
    here = Path("docs", page.file.src_uri).parent

    def outside(link: re.Match[str]) -> str:
        text, target = link.groups()
        in_site = target.startswith(("http", "#")) or files.get_file_from_path(
            str(Path("/", page.file.src_uri).parent.joinpath(target.split("#")[0]).resolve())[1:]
        )
        file = target.split("#")[0]
        exists = (here / file).exists() or Path(file).exists()
        return text if exists and not in_site else link.group(0)

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", outside, markdown)
