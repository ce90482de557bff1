"""`progress=True`: a bar on a terminal, a line in a notebook, nothing elsewhere; functions are called as before."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import checkpoint, quantized
from rich.progress import Progress

import layerbounds as lb
from layerbounds.exceptions import InputError
from layerbounds.progress import PAUSE, Bar, _Line, shown_bar, watched
from layerbounds.search.quantization import effort

RNG = np.random.default_rng(0)
LAYER = lb.Layer.from_activations(RNG.normal(size=(3, 4)), RNG.normal(size=(20, 4)), "fc")
PROBLEM = lb.quantization_problem(LAYER, 2)

CALLS: dict[str, Callable[..., Any]] = {
    "solve": lambda **p: lb.solve(PROBLEM, time_limit=1.0, jobs=1, **p),
    "compare": lambda **p: lb.compare(LAYER, 2, methods=["rtn"], time_limit=1.0, jobs=1, **p),
    "versus": lambda **p: lb.versus(LAYER, [2], time_limit=0.0, jobs=1, **p),
    "contest": lambda **p: lb.contest(LAYER, [2, 3], time_limit=0.0, jobs=1, **p),
    "order_gap": lambda **p: lb.order_gap(LAYER, 2, k=2, orders=["QP"], time_limit=1.0, jobs=1, **p),
    "run": lambda **p: lb.run([LAYER], out="run", bits=2, methods=[], time_limit=0.0, parallel="threads", **p),
    "capture": lambda **p: lb.capture(*_model(), **p),
    "capture_to_file": lambda **p: lb.capture_to_file("a.safetensors", *_model(), **p),
    "score": lambda **p: lb.score(_checkpoint(), [LAYER], jobs=1, total_time=0.1, **p),
    "compress": lambda **p: lb.compress(*_model(), "rtn", bits=2, intervals=False, jobs=1, **p),
}


def _model() -> tuple[Any, list[Any]]:
    torch = pytest.importorskip("torch")
    return torch.nn.Linear(3, 2), [torch.eye(3), torch.ones(4, 3)]


def _checkpoint() -> Any:
    weight = quantized("fc", PROBLEM.grid, PROBLEM.grid.nearest(LAYER.matrix))
    return checkpoint({"fc": weight}, path="fc.safetensors")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to a terminal that is standard error."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    return stream


@pytest.mark.parametrize("name", CALLS)
def test_bars(name: str, drawn: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with redirect_stderr(drawn):
        CALLS[name](progress=True)
    text = drawn.getvalue()
    assert "━" in text
    assert {"capture_to_file": "capture", "compress": "compress", "capture": "capture", "run": "run"}.get(
        name, "fc"
    ) in text


@pytest.mark.parametrize("name", CALLS)
def test_nothing_without_a_terminal(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (True, False):
        if name != "run" or value:
            CALLS[name](progress=value)
    assert "━" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", CALLS)
def test_functions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    CALLS[name](progress=lambda *about: seen.append(about))
    assert seen and all(isinstance(about[0], int) for about in seen)
    with pytest.raises(InputError, match="progress is 3; pass True for a bar, or a function"):
        CALLS[name](progress=3)


def test_a_bar_says_what_is_done() -> None:
    progress = Progress(auto_refresh=False)
    changes: list[int] = []
    bar = Bar(progress, "title", None, lambda: changes.append(1))
    bar(1, 4, "conv1")
    task = progress.tasks[0]
    assert (task.completed, task.total, task.fields["stage"]) == (1, 4, "conv1")
    bar(2)
    bar(3, 4, 17, object())
    bar.report("points 5 of 40")
    bar.compiling(7)
    assert (task.completed, task.total, task.fields["stage"]) == (3, 4, "points 5 of 40")
    assert task.description == "title · compiling kernels, once: 7"
    bar.compiling(None)
    assert task.description == "title" and len(changes) == 6


def test_a_bar_in_another_one_is_none(drawn: io.StringIO) -> None:
    with redirect_stderr(drawn):
        with shown_bar("outer", 1) as outer, shown_bar("inner", 1) as inner:
            assert outer is not None
            assert inner is None or isinstance(inner, Bar)
        with shown_bar("again", 1) as again:
            assert again is not None


def test_a_bar_is_gone_after_an_error(drawn: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt), redirect_stderr(drawn), watched(True, "first", 3, "channels"):
        raise KeyboardInterrupt
    with redirect_stderr(drawn), watched(True, "second", 3, "channels") as bar:
        assert isinstance(bar, Bar)


def test_lines_of_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    states: list[dict[str, str]] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            states.append(data)

    monkeypatch.setattr(display, "display", lambda *_, **__: Handle())
    line = _Line(Progress("{task.description}", "{task.completed}", auto_refresh=False))
    bar = Bar(line.progress, "<b>", 3, line.redraw)
    bar(1)
    bar(2)
    line.redraw(last=True)
    # The second state comes too soon after the first, and the last one is drawn in any case.
    assert [state["text/plain"].split()[1] for state in states] == ["1", "2"] and PAUSE > 0
    assert "&lt;b&gt;" in states[-1]["text/html"] and "<b>" not in states[-1]["text/html"]


@pytest.mark.slow
def test_a_notebook(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    code = (
        "import layerbounds as lb\n"
        "solution = lb.solve(lb.quantization_problem(lb.demo_layers()['conv1'], 2), progress=True, time_limit=1.0)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    shown = [output for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert len(shown) == 1
    assert "conv1" in shown[0].data["text/plain"] and "16/16 channels" in shown[0].data["text/plain"]


@pytest.mark.slow
def test_the_command_line_has_the_same_bars() -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "layerbounds", "solve", "--layer", "conv1", "--bits", "2", "--channels", "0:2"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=child, env=environment) as run:
        os.close(child)
        text = b""
        while True:
            try:
                part = os.read(parent, 4096)
            except OSError:
                break
            if not part:
                break
            text += part
    os.close(parent)
    assert run.returncode == 0
    assert "━".encode() in text and b"conv1" in text


@pytest.fixture
def wide() -> lb.QuantizationProblem:
    """So many inputs that the preparation is worth a word, of a matrix that no other test prepares."""
    rng = np.random.default_rng(200)
    gram = np.eye(effort.SAID) + 0.01 * np.diag(rng.random(effort.SAID))
    return lb.quantization_problem(lb.Layer(rng.normal(size=(1, effort.SAID)), gram), 2)


def test_the_preparation_is_estimated_before_it_begins(
    wide: lb.QuantizationProblem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(effort, "small_seconds", lambda n: 0.01 * n)
    said: list[str] = []
    lb.solve(wide, "native", time_limit=0.01, jobs=1, report=said.append)
    assert said[0] == "preparing 200 inputs: about 2 s"
    # What is remembered takes no time, and nobody is told who does not listen.
    lb.solve(wide, "native", time_limit=0.01, jobs=1, report=said.append)
    assert said.count(said[0]) == 1
    assert "preparing" not in capsys.readouterr().err


def test_estimates_on_standard_error(
    wide: lb.QuantizationProblem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(effort, "small_seconds", lambda n: 0.01 * n)
    moved = lb.Layer(wide.layer.weight, wide.layer.gram[0] * 1.5)
    lb.solve(lb.quantization_problem(moved, 2), "native", time_limit=0.01, jobs=1, report=True)
    assert "layerbounds: preparing 200 inputs: about 2 s\n" in capsys.readouterr().err
    with pytest.raises(InputError, match="report is 3; pass True for lines on standard error, or a function"):
        lb.solve(wide, report=3)  # type: ignore[arg-type]


def test_estimates_grow() -> None:
    assert effort.small_seconds(100) < effort.small_seconds(390)
    assert 0.05 < effort.small_seconds(390) < 600
