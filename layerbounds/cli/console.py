"""Where results and progress are printed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from layerbounds.kernels.compilation import reporting

#: Wider than any table: what goes to a file or a pipe is never wrapped.
PIPE_WIDTH = 10_000


def result_console() -> Console:
    """Console on standard output; names are printed as they are, brackets included."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, markup=False, highlight=False, emoji=False)


def fits(console: Console, renderable: RenderableType) -> bool:
    """Whether a table needs no wrapping."""
    unlimited = console.options.update(width=PIPE_WIDTH)
    return Measurement.get(console, unlimited, renderable).maximum <= console.width


class ChannelBar:
    """A bar on standard error: called with the number of channels done, told what is worked on.

    Parameters
    ----------
    bar : Progress
    title : str
    total : int or None
        None until it is known.
    """

    def __init__(self, bar: Progress, title: str, total: int | None) -> None:
        self._bar, self._title = bar, title
        self._task = bar.add_task(title, total=total, stage="")

    def __call__(self, done: int, *_: Any) -> None:
        """So many are done."""
        self._bar.update(self._task, completed=done)

    def of(self, done: int, total: int, *_: Any) -> None:
        """So many of so many are done."""
        self._bar.update(self._task, completed=done, total=total)

    def report(self, text: str) -> None:
        """What is worked on at the moment."""
        self._bar.update(self._task, stage=text)

    def compiling(self, count: int | None) -> None:
        """Kernels are compiled, so many; None at the end."""
        note = "" if count is None else f" · compiling kernels, once: {count}"
        self._bar.update(self._task, description=self._title + note)


@contextmanager
def channel_progress(title: str, total: int | None, unit: str = "channels") -> Iterator[ChannelBar | None]:
    """Show a bar on standard error while channels (or other units) are solved, if a person is looking.

    Gives the callback for `layerbounds.solve`, or None where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("{task.fields[stage]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = ChannelBar(progress, title, total)
        with reporting(bar.compiling):
            yield bar


@contextmanager
def batch_progress(title: str, what: str = "batches") -> Iterator[Callable[[int, int | None], None] | None]:
    """Show a bar on standard error while a model is run, if a person is looking.

    Gives a callback (done, total or None), or None where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(what))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def said_warnings() -> Iterator[None]:
    """Print warnings as one line each on standard error when the block ends, however it ends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(entry.message) for entry in caught):
                print("warning:", " ".join(text.split()), file=sys.stderr)
