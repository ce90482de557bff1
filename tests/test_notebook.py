"""The notebook of all displays: it is stored with its outputs, and it runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import layerbounds as lb

nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "notebook.ipynb"
MOST_BYTES = 600_000
#: What notebooks show of each result begins with the name of its class.
SHOWN = re.compile(r"<strong>(\w+)</strong>")
KINDS = {
    "Allocation", "CaptureReport", "CapturedLayers", "Checkpoint", "Comparison", "CompressedModel", "Evaluation",
    "Grid", "Layer", "LayerScore", "MethodComparison", "NetworkRun", "OrderGap", "PruningProblem",
    "QuantizationProblem", "QuantizedWeight", "Scores", "Solution", "Standings",
}  # fmt: skip


def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(cell: Any) -> list[list[str]]:
    """The types of what a cell shows; texts that it writes on the way are none."""
    return [sorted(output["data"]) for output in cell["outputs"] if output["output_type"] != "stream"]


def check_displays(notebook: Any) -> None:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 10 and all(cell["outputs"] for cell in cells)
    shown = [output["data"] for cell in cells for output in cell["outputs"] if "data" in output]
    html = "".join(data.get("text/html", "") for data in shown)
    assert set(SHOWN.findall(html)) == KINDS
    pictures = [data for data in shown if "image/png" in data]
    # Both of a solution, and one each of the six other kinds that draw themselves.
    assert len(pictures) == 8 and all(data["text/plain"].startswith("<Figure") for data in pictures)
    words = [data["text/plain"] for data in shown if SHOWN.search(data.get("text/html", ""))]
    assert all(len(text.splitlines()) <= 10 for text in words)


def test_stored_outputs_are_small_and_have_every_display() -> None:
    notebook = stored()
    nbformat.validate(notebook)
    check_displays(notebook)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    # Where it was made is nobody's business, and nothing went wrong.
    assert not re.search(r"/tmp|/home|/root|/work|Traceback|stderr", re.sub(r'"image/png": ".*?"', "", text))


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    before = stored()
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(lb.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    notebook = stored()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    check_displays(notebook)
    assert [outputs(c) for c in notebook["cells"] if "outputs" in c] == [
        outputs(c) for c in before["cells"] if "outputs" in c
    ]
