"""Draw the pictures of docs/gallery.md and write the page.

    python examples/gallery/build.py                 docs/gallery.md and docs/figures/gallery
    python examples/gallery/build.py --docs FOLDER   elsewhere

Every other file of this folder is a picture: its docstring is the text, the rest the code that draws NAME.svg into the
current folder.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import runpy
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: In the order of the page.
PICTURES = ("methods", "trace", "quantization_or_pruning", "equal_storage", "order", "distributions")
HEAD = """# Gallery

Pictures and the code that draws them, on the demo network; each takes seconds to a minute. The page is written by
`examples/gallery/build.py`.
"""


def section(name: str) -> str:
    """The part of the page about a picture.

    Parameters
    ----------
    name : str
        A file of this folder without its ending.
    """
    source = (HERE / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    title, _, text = (ast.get_docstring(tree) or "").partition("\n\n")
    code = "\n".join(source.splitlines()[tree.body[1].lineno - 1 :])
    picture = f"![{title.rstrip('.')}](figures/gallery/{name}.svg)"
    return f"## {title.rstrip('.')}\n\n{picture}\n\n{text}\n\n```python\n{code}\n```\n"


def page() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *(section(name) for name in PICTURES)])


def draw(name: str, folder: Path) -> None:
    """Run a picture's code in a folder.

    Parameters
    ----------
    name : str
    folder : path
        Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        runpy.run_path(os.fspath(HERE / f"{name}.py"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the gallery and write its page.")
    parser.add_argument("--docs", type=Path, default=HERE.parent.parent / "docs", help="folder of the page")
    parser.add_argument("--only", choices=PICTURES, action="append", help="pictures to draw (default: all)")
    options = parser.parse_args()
    for name in options.only or PICTURES:
        print(name, flush=True)
        draw(name, options.docs / "figures" / "gallery")
    (options.docs / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
