"""Bars for long work: on a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from layerbounds.arguments import shown
from layerbounds.exceptions import InputError
from layerbounds.kernels.compilation import reporting

if TYPE_CHECKING:
    from rich.progress import Progress

Callback = TypeVar("Callback", bound=Callable[..., None])

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)

#: Letters in a line of a notebook, and the least seconds between two states of it.
LINE, PAUSE = 110, 0.2


class Bar:
    """A bar that is called with how much is done, and told what is worked on.

    Parameters
    ----------
    progress : rich.progress.Progress
    title : str
    total : int or None
        None until it is known.
    redraw : callable, optional
        Called after every change, where the bar does not draw itself.
    """

    def __init__(
        self, progress: Progress, title: str, total: int | None, redraw: Callable[[], None] | None = None
    ) -> None:
        self._progress, self._title, self._redraw = progress, title, redraw
        self._task = progress.add_task(title, total=total, stage="")

    def __call__(self, done: int, total: int | None = None, *about: Any) -> None:
        """So many are done; of how many, and the name of what is worked on, if they are said."""
        fields: dict[str, Any] = {"completed": done}
        if total is not None:
            fields["total"] = total
        if about and isinstance(about[0], str):
            fields["stage"] = about[0]
        self._update(**fields)

    def report(self, text: str) -> None:
        """What is worked on at the moment."""
        self._update(stage=text)

    def compiling(self, count: int | None) -> None:
        """Kernels are compiled, so many; None at the end."""
        note = "" if count is None else f" · compiling kernels, once: {count}"
        self._update(description=self._title + note)

    def _update(self, **fields: Any) -> None:
        self._progress.update(self._task, **fields)
        if self._redraw is not None:
            self._redraw()


@contextmanager
def watched(
    progress: Callback | bool | None, title: str, total: int | None, unit: str
) -> Iterator[Callback | Bar | None]:
    """What a function with the argument ``progress`` calls: what the user passed, or a bar for True.

    Parameters
    ----------
    progress : callable, bool or None
    title, total, unit
        As in `shown_bar`.

    Raises
    ------
    InputError
        If it is something else.
    """
    check_listener(progress)
    if isinstance(progress, (bool, np.bool_)):
        if progress:
            with shown_bar(title, total, unit) as bar:
                yield bar
            return
        progress = None
    yield progress


def check_listener(value: Any, what: str = "progress") -> None:
    """Refuse what is neither True nor False, None nor a function.

    Raises
    ------
    InputError
    """
    if value is not None and not isinstance(value, (bool, np.bool_)) and not callable(value):
        shows = "a bar" if what == "progress" else "lines on standard error"
        raise InputError(f"{what} is {shown(value)}; pass True for {shows}, or a function.")


@contextmanager
def telling(hears: Callable[[str], None] | None) -> Iterator[None]:
    """Let a function hear what long work in the block has to say (`tell`); None hears nothing.

    Parameters
    ----------
    hears : callable or None
        Called with a few words, from any thread.
    """
    before = _listener.set(hears)
    try:
        yield
    finally:
        _listener.reset(before)


def listening() -> bool:
    """Whether anybody hears what `tell` says: what costs time to find out is then worth it."""
    return _listener.get() is not None


def tell(text: str) -> None:
    """Say what long work is at, or how long it will take."""
    hears = _listener.get()
    if hears is not None:
        hears(text)


def listener(report: Callable[[str], None] | bool | None) -> Callable[[str], None] | None:
    """Who hears of long work: the function that a user passed, or for True what prints lines on standard error."""
    if isinstance(report, (bool, np.bool_)):
        return _print_line if report else None
    return report


def _print_line(text: str) -> None:
    print(f"layerbounds: {text}", file=sys.stderr, flush=True)


@contextmanager
def shown_bar(title: str, total: int | None, unit: str = "channels") -> Iterator[Bar | None]:
    """Show a bar while the block runs, if a person is looking; compilation is announced in it.

    On a terminal it is on standard error, and gone at the end; in a notebook it is a line of the cell's output.

    Parameters
    ----------
    title : str
    total : int or None
        None until it is known.
    unit : str
        What is counted.
    """
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("{task.fields[stage]}", markup=False),
    )
    if Console().is_jupyter:
        line = _Line(Progress(*columns, auto_refresh=False, console=Console(file=io.StringIO(), force_jupyter=False)))
        bar = Bar(line.progress, title, total, line.redraw)
        try:
            with reporting(bar.compiling):
                yield bar
        finally:
            line.redraw(last=True)
        return
    if not sys.stderr.isatty():
        yield None
        return
    # What is printed meanwhile goes above the bar on a terminal, and where it belongs elsewhere.
    live = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    try:
        live.start()
    except LiveError:
        # Another bar is on the terminal already, of work that this is a part of, or beside which it is done.
        yield None
        return
    try:
        bar = Bar(live, title, total)
        with reporting(bar.compiling):
            yield bar
    finally:
        live.stop()


class _Line:
    """A bar in the output of a notebook's cell, drawn anew when something changes; no widgets are needed.

    Parameters
    ----------
    progress : rich.progress.Progress
    """

    def __init__(self, progress: Progress) -> None:
        from IPython.display import display

        self.progress = progress
        self._drawn = -PAUSE
        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)

    def redraw(self, last: bool = False) -> None:
        """Show the present state, unless the one before is too young."""
        now = time.monotonic()
        if last or now - self._drawn >= PAUSE:
            self._drawn = now
            self._handle.update(self._drawing(), raw=True)

    def _drawing(self) -> dict[str, str]:
        from rich.console import Console

        console = Console(
            file=io.StringIO(), width=LINE, record=True, force_jupyter=False, force_terminal=True, legacy_windows=False
        )
        console.print(self.progress.get_renderable())
        html = console.export_html(inline_styles=True, clear=False, code_format="<pre>{code}</pre>")
        return {"text/plain": console.export_text().rstrip(), "text/html": html}
