"""Where results are printed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.measure import Measurement

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
