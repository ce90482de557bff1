"""Long preparations that Ctrl-C ends at once, even while a call of LAPACK runs."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

#: Seconds between two looks for Ctrl-C.
LOOK = 0.1

_cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancelled", default=None)


class Cancelled(BaseException):
    """Ends work whose result nobody waits for any more."""


@contextmanager
def cancellable(event: threading.Event) -> Iterator[None]:
    """Let an event end the work of this thread while the block runs."""
    before = _cancelled.set(event)
    try:
        yield
    finally:
        _cancelled.reset(before)


def cancel_event() -> threading.Event:
    """The event that ends the work of this thread, or a new one."""
    return _cancelled.get() or threading.Event()


def checkpoint() -> None:
    """End the work of this thread where it was cancelled: called between its pieces.

    Raises
    ------
    Cancelled
    """
    event = _cancelled.get()
    if event is not None and event.is_set():
        raise Cancelled


def interruptible(work: Callable[[], Result]) -> Result:
    """Let a thread do some work while this one listens to Ctrl-C.

    The thread ends at its next `checkpoint`; a process that ends does not wait for it.

    Raises
    ------
    KeyboardInterrupt
        Within a moment of Ctrl-C.
    Cancelled
        Where this thread's own work was cancelled.
    """
    event, done = threading.Event(), threading.Event()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        _cancelled.set(event)
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    try:
        # Ctrl-C may come before this returns.
        thread.start()
        # A wait without end would not be interrupted on every system.
        while not done.wait(LOOK):
            checkpoint()
    except BaseException:
        event.set()
        raise
    if errors:
        raise errors[0]
    return results[0]
