"""The address of the repository: pyproject.toml has it, and nothing else of the site does."""

from __future__ import annotations

import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def project_urls(root: Path) -> dict[str, str]:
    """The addresses that the package's metadata name."""
    with (root / "pyproject.toml").open("rb") as file:
        urls: dict[str, str] = tomllib.load(file)["project"]["urls"]
    return urls


def on_config(config: MkDocsConfig) -> None:
    """Fill in the repository."""
    config.repo_url = project_urls(Path(config.config_file_path).parent)["Repository"]
    config.repo_name = "Repository"
