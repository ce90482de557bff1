"""Pages whose text stands in the root of the repository: the site has them beside those of docs/."""

from __future__ import annotations

import posixpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

#: Files of the repository, and the pages that they are.
ROOT_PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def repository_path(page: str) -> str:
    """Where a page's text stands in the repository, for its address among the pages."""
    of_pages = {page: path for path, page in ROOT_PAGES.items()}
    return of_pages.get(page, posixpath.join("docs", page))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages."""
    root = Path(config.config_file_path).parent
    for path, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(root / path).read_text(encoding="utf-8")))
