"""What stands between backticks: bars in tables, which GitHub wants escaped, and options, which stay in one line."""

from __future__ import annotations

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

#: A row of a table, and code in it.
ROW, CODE = re.compile(r"^\|.*\|$", re.MULTILINE), re.compile(r"`[^`\n]+`")


def bars(text: str) -> str:
    """Markdown in which code in tables has its bars as they are meant."""
    return ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), text)


def options(html: str) -> str:
    """A page whose options of commands are marked, as far as they fit into a line of the narrowest screen."""
    return re.sub(r"<code>(?=--?[a-z][^<]{,32}</code>)", '<code class="option">', html)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write bars as the site wants them."""
    return bars(markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark options."""
    return options(html)
