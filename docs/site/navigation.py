"""Patterns in the nav: each stands for the pages that it fits, sorted by title, an index first."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files


def expanded(entries: list[Any], pages: dict[str, str]) -> list[Any]:
    """A nav with the pages in place of the patterns; sections that are left empty go.

    Parameters
    ----------
    entries : list
        As mkdocs.yml has them: paths, patterns, or a dict from a title to either a path or a section.
    pages : dict of str to str
        The text of every page, by its path.
    """
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict):
            ((title, inner),) = entry.items()
            inner = expanded(inner, pages) if isinstance(inner, list) else inner
            found += [{title: inner}] if inner else []
        elif "*" in entry:
            found += sorted(fnmatch.filter(pages, entry), key=lambda path: _place(path, pages[path]))
        else:
            found.append(entry)
    return found


def _place(path: str, text: str) -> tuple[bool, str]:
    """By title, and the page of the section itself first."""
    return not path.endswith("index.md"), title_of(text).casefold()


def title_of(text: str) -> str:
    """The first heading of a page, or nothing."""
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    return heading[1] if heading else ""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Expand the nav of the site."""
    assert config.nav is not None
    config.nav = expanded(config.nav, {file.src_uri: file.content_string for file in files.documentation_pages()})
