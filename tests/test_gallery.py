"""docs/gallery.md is what its builder writes, and its pictures are there; slow: they are drawn anew."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parent.parent
GALLERY = PROJECT / "examples" / "gallery"


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery_builder", GALLERY / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_builder() -> None:
    build = builder()
    assert {file.stem for file in GALLERY.glob("*.py")} == {*build.PICTURES, "build"}
    assert (PROJECT / "docs" / "gallery.md").read_text(encoding="utf-8") == build.page(), (
        "run: python examples/gallery/build.py"
    )
    drawn = {file.stem for file in (PROJECT / "docs" / "figures" / "gallery").glob("*.svg")}
    assert drawn == set(build.PICTURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", builder().PICTURES)
def test_a_picture_is_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    builder().draw(name, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"{name}.svg"]
    text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    assert "<svg" in text and "<text" in text
