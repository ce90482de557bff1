"""The documentation site: what its pages cover, where its links lead, and that it builds without a warning."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import layerbounds as lb

pytest.importorskip("mkdocs")

PROJECT = Path(__file__).resolve().parent.parent
DOCS = PROJECT / "docs"
API = sorted((DOCS / "api").glob("*.md"))


def hooks(*names: str) -> list[ModuleType]:
    """Modules of docs/site, which MkDocs imports with their folder on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "site")
        return [importlib.import_module(name) for name in names]


LINKS, NAVIGATION, PAGES, REPOSITORY, SPANS = hooks("links", "navigation", "pages", "repository", "spans")


def nav() -> list[Any]:
    from mkdocs.config import load_config

    entries: list[Any] = load_config(str(PROJECT / "mkdocs.yml")).nav
    return entries


def paths(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from paths(inner) if isinstance(inner, list) else [inner]


def test_nav_has_every_page_once() -> None:
    pages = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    pages |= {page: (PROJECT / path).read_text(encoding="utf-8") for path, page in PAGES.ROOT_PAGES.items()}
    named = list(paths(NAVIGATION.expanded(nav(), pages)))
    assert len(named) == len(set(named))
    assert set(pages) - set(named) == set(), "mkdocs.yml names these pages nowhere"
    assert set(named) - set(pages) == set(), "mkdocs.yml names pages that do not exist"


def test_reference_has_every_public_name_once() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in API)
    found = re.findall(r"^::: layerbounds\.(?:solve\.)?(\w+)$", text, re.MULTILINE)
    assert len(found) == len(set(found))
    assert set(lb.__all__) - {*found, "__version__", "LayerboundsError"} == set(), "docs/api has these names nowhere"
    assert "exceptions" in found
    assert "`lb.__version__`" in text


def test_patterns_of_the_nav() -> None:
    pages = {"how-to/a.md": "# Zebra\n", "how-to/b.md": "# apple\n", "c.md": "no heading\n", "how-to/d.md": "# Mango\n"}
    pages["how-to/index.md"] = "# Pages\n"
    entries = ["c.md", {"How-to": ["how-to/*.md"]}, {"Empty": ["none*.md", {"Inner": ["nothing/*.md"]}]}, {"T": "c.md"}]
    order = ["how-to/index.md", "how-to/b.md", "how-to/d.md", "how-to/a.md"]
    assert NAVIGATION.expanded(entries, pages) == ["c.md", {"How-to": order}, {"T": "c.md"}]


@pytest.mark.parametrize(
    ("page", "target", "expected"),
    [
        ("cli.md", "../README.md", "readme.md"),
        ("how-to/bits.md", "../../README.md", "../readme.md"),
        ("how-to/bits.md", "../grids.md", "../grids.md"),
        ("how-to/bits.md", "other.md", "other.md"),
        ("readme.md", "docs/compare.svg", "compare.svg"),
        ("readme.md", "CONTRIBUTING.md", "contributing.md"),
        ("readme.md", "LICENSE", "HOST/blob/main/LICENSE"),
        ("cli.md", "../examples", "HOST/tree/main/examples"),
        ("how-to/bits.md", "../../examples/compare_plot.py", "HOST/blob/main/examples/compare_plot.py"),
        ("cli.md", "site/links.py", "HOST/blob/main/docs/site/links.py"),
    ],
)
def test_links_lead_to_pages_or_to_the_repository(page: str, target: str, expected: str) -> None:
    assert LINKS.site_link(target, page, PROJECT, "HOST") == expected
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LINKS.site_link(f"../../{target}/../../nowhere.py", page, PROJECT, "HOST")


def test_links_are_rewritten_but_for_code_and_addresses() -> None:
    text = "[a](../README.md#start) `[b](../README.md)` [c](#here) [d](https://e.org/x.md) ![e](../docs/compare.svg)\n"
    fence = "```python\nx[0](../README.md)\n```\n"
    told = "[a](readme.md#start) `[b](../README.md)` [c](#here) [d](https://e.org/x.md) ![e](compare.svg)\n"
    assert LINKS.rewritten(text + fence + text, "cli.md", PROJECT, "HOST") == told + fence + told


def test_what_is_said_of_the_project_is_said_alike() -> None:
    yaml = pytest.importorskip("yaml")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    repository = project["urls"]["Repository"]
    assert all(url.startswith(repository) for url in project["urls"].values())
    assert citation["repository-code"] == repository
    assert citation["version"] == lb.__version__
    assert citation["license"] == project["license"]
    assert citation["keywords"] == project["keywords"]
    assert citation["authors"] == project["authors"]
    elsewhere = [*PROJECT.glob("*.md"), *DOCS.rglob("*.md"), PROJECT / "mkdocs.yml"]
    assert not [path.name for path in elsewhere if repository in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", sorted((PROJECT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_issue_templates_ask_for_the_problem(path: Path) -> None:
    form = pytest.importorskip("yaml").safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert fields and len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in fields)
    assert "layerbounds solve … --save-problem problem.safetensors" in path.read_text(encoding="utf-8")
    if path.stem == "wrong-bound":
        assert {f["id"] for f in fields if f.get("validations", {}).get("required")} >= {"problem", "versions"}


def test_links_named_after_files_have_titles() -> None:
    titles = {"readme.md": "Home", "kernels.md": "Compiled kernels"}
    text = (
        "([docs/kernels.md](kernels.md#cache)) ([README.md](../README.md)) [cli.md](numerics.md) [a k.md](kernels.md)"
    )
    told = "([Compiled kernels](kernels.md#cache)) ([Home](readme.md)) [cli.md](numerics.md) [a k.md](kernels.md)"
    assert LINKS.rewritten(text, "cli.md", PROJECT, "HOST", titles) == told


def test_bars_in_tables_and_options() -> None:
    text = "| `a\\|b` | \\|w\\| |\n\ntext `c\\|d`\n"
    assert SPANS.bars(text) == "| `a|b` | \\|w\\| |\n\ntext `c\\|d`\n"
    assert SPANS.options("<code>--bits 3</code><code>-b</code>") == (
        '<code class="option">--bits 3</code><code class="option">-b</code>'
    )
    assert SPANS.options("<code>- 3</code><code>a --b</code>") == "<code>- 3</code><code>a --b</code>"
    assert SPANS.options(f"<code>--{'long' * 9}</code>") == f"<code>--{'long' * 9}</code>"


PAGES_OF_BOTH = [*(PROJECT / path for path in PAGES.ROOT_PAGES), *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES_OF_BOTH, ids=lambda path: path.name)
def test_lists_are_read_alike_on_github_and_on_the_site(path: Path) -> None:
    """The site wants an empty line before a list, and four spaces before what belongs to one of its entries."""
    blank = re.sub(
        r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), path.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    inside, before = False, ""
    for number, line in enumerate(blank.splitlines(), 1):
        entry = re.match(r"^( *)(?:[-*+]|\d+\.) ", line)
        place = f"{path.name}, line {number}: {line[:60]}"
        if entry and len(entry[1]) < 8:
            assert len(entry[1]) % 4 == 0, f"{place}: indent it by four spaces"
            assert inside or not before.strip(), f"{place}: put an empty line before it"
            inside = True
        elif line.strip() and not before.strip():
            inside = inside and line.startswith("  ")
            assert not inside or line.startswith("    "), f"{place}: indent it by four spaces"
        before = line


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=200)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    start = (tmp_path / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r'(?:src|<link[^>]* href)="(https?:[^"]*)"', start)
    assert fetched == [], "pages fetch nothing from elsewhere"
    assert REPOSITORY.project_urls(PROJECT)["Repository"] in start
    solving = (tmp_path / "api" / "solve" / "index.html").read_text(encoding="utf-8")
    assert 'id="layerbounds.solve.solve"' in solving
    assert '<a href="../../backends/">Solver backends</a>' in solving, "pages that docstrings name are linked"
    assert "Attributes:" in (tmp_path / "api" / "layers" / "index.html").read_text(encoding="utf-8")
