"""Links as the site needs them: to pages or to the repository, and with titles in place of the names of files."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from navigation import title_of
from pages import ROOT_PAGES, repository_path

log = logging.getLogger("mkdocs.hooks.links")

#: A link or an image, and what must not be changed: blocks and what stands between backticks.
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE_OR_LINK = re.compile(
    r"(?P<code>`+).+?(?P=code)"
    r"|(?P<name>(?<=\[)[\w./-]+\.md)?\]\((?P<target>(?![a-z]+:|#|/)[^)\s#]+)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL,
)


def site_link(target: str, page: str, root: Path, repository: str) -> str:
    """Where a relative link of a page leads on the site.

    Parameters
    ----------
    target : str
        As it is written, relative to where the page's text stands in the repository; no anchor.
    page : str
        The page that has the link, by its address among the pages.
    root : path
        Of the checkout.
    repository : str
        Address of the repository.

    Raises
    ------
    FileNotFoundError
        If the repository has no such file.
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(page)), target))
    if path in ROOT_PAGES:
        inside = ROOT_PAGES[path]
    elif path.startswith("docs/") and not path.endswith(".py"):
        inside = path.removeprefix("docs/")
    elif (root / path).exists():
        return f"{repository}/{'tree' if (root / path).is_dir() else 'blob'}/main/{path}"
    else:
        raise FileNotFoundError(path)
    return posixpath.relpath(inside, posixpath.dirname(page) or ".")


def rewritten(text: str, page: str, root: Path, repository: str, titles: Mapping[str, str] | None = None) -> str:
    """The Markdown of a page with the links that the site needs.

    Parameters
    ----------
    text, page, root, repository : str or path
        The Markdown, and as in `site_link`.
    titles : mapping of str to str, optional
        Of the pages: links whose text is a file's name have the title in its place.
    """

    def replace(found: re.Match[str]) -> str:
        if found["target"] is None:
            return found[0]
        try:
            target = site_link(found["target"], page, root, repository)
        except FileNotFoundError as error:
            log.warning("%s links to %s, which is not in the repository", page, error)
            return found[0]
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        name = found["name"] and ((titles or {}).get(inside) or found["name"])
        return f"{name or ''}]({target}{found['anchor'] or ''})"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [CODE_OR_LINK.sub(replace, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, CODE_OR_LINK.sub(replace, text[end:])])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    assert config.repo_url
    titles = {file.src_uri: title_of(file.content_string) for file in files.documentation_pages()}
    return rewritten(markdown, page.file.src_uri, Path(config.config_file_path).parent, config.repo_url, titles)


#: How docstrings and plain text name a page; code and links stay as they are.
CODE_OR_NAMED = re.compile(r"<(code|pre|a)\b.*?</\1>|(?<![\w/])docs/(?P<path>[\w/-]+\.md)", re.DOTALL)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the pages that a text names."""

    def replace(found: re.Match[str]) -> str:
        if found["path"] is None:
            return found[0]
        file = files.get_file_from_path(found["path"])
        if file is None:
            log.warning("%s names %s, which is no page", page.file.src_uri, found[0])
            return found[0]
        return f'<a href="{file.url_relative_to(page.file)}">{title_of(file.content_string)}</a>'

    return CODE_OR_NAMED.sub(replace, html)
