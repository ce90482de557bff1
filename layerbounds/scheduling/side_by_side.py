"""Pieces of work in threads, and Ctrl-C."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Piece = TypeVar("Piece")

#: Seconds between two looks for Ctrl-C.
LOOK = 0.2


def run(
    units: Sequence[Callable[[], list[Piece]]], workers: int, cancel: threading.Event, keep: Callable[[Piece], None]
) -> bool:
    """Run pieces of work side by side; Ctrl-C sets ``cancel`` and waits for what they still return.

    Parameters
    ----------
    units : sequence of callable
        Begun in this order. They look at ``cancel``.
    workers : int
    cancel : threading.Event
    keep : callable
        Called in this thread with each result; after a Ctrl-C within it, once more with the same one.

    Returns
    -------
    bool
        Whether there was a Ctrl-C. A second one is raised.
    """
    todo, results = deque(units), list[list[Piece] | BaseException]()
    arrived = threading.Event()

    def work() -> None:
        while True:
            try:
                unit = todo.popleft()
            except IndexError:
                return
            result: list[Piece] | BaseException
            try:
                result = unit()
            except BaseException as error:
                result = error
            results.append(result)
            arrived.set()

    interrupted, kept = False, 0
    threads: list[Future[None]] = []
    # Small factorizations with several BLAS threads are many times slower than with one.
    with threadpool_limits(limits=1), ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            while kept < len(units):
                try:
                    # Threads that fetch their work: a Ctrl-C while they are started loses none of it.
                    while len(threads) < workers:
                        threads.append(pool.submit(work))
                    arrived.wait(LOOK)
                    arrived.clear()
                    while kept < len(results):
                        result = results[kept]
                        if isinstance(result, BaseException):
                            raise result
                        # In this order, so that a Ctrl-C in between loses no result.
                        for piece in result:
                            keep(piece)
                        kept += 1
                except KeyboardInterrupt:
                    # Every piece, begun or not, still returns something valid; a second Ctrl-C gives up.
                    if interrupted:
                        raise
                    interrupted = True
                    cancel.set()
        except BaseException:
            cancel.set()
            todo.clear()
            raise
    return interrupted
