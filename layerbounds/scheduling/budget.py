"""How many seconds each piece of work gets of a limit for all of them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from layerbounds.kernels.compilation import working_time


class Budget:
    """Seconds that pieces of work, some side by side, divide among them.

    What the pieces that run may still take is kept for them; the rest is divided evenly among those to come.

    Parameters
    ----------
    total : float
        Seconds on the clock, which begins now; infinite for no limit.
    pieces : int
    workers : int
        Pieces side by side.
    least : float
        Seconds that a piece gets at least, as long as there are some: the last ones may get none.
    """

    def __init__(self, total: float, pieces: int, workers: int, least: float = 0.0) -> None:
        self._end = working_time() + total
        self._waiting, self._workers, self._least = pieces, workers, least
        self._running: dict[int, float] = {}
        self._next = 0
        self._lock = threading.Lock()

    def left(self) -> float:
        """Seconds until the end."""
        return max(self._end - working_time(), 0.0)

    @contextmanager
    def piece(self, limit: float = math.inf) -> Iterator[float]:
        """A piece that begins now: gives its seconds, at most ``limit``."""
        with self._lock:
            left, now = self.left(), working_time()
            kept = sum(max(min(end - now, left), 0.0) for end in self._running.values())
            share = math.inf if left == math.inf else (left * self._workers - kept) / max(self._waiting, 1)
            seconds = max(min(limit, max(share, self._least), left), 0.0)
            self._waiting -= 1
            key = self._next = self._next + 1
            self._running[key] = now + seconds
        try:
            yield seconds
        finally:
            with self._lock:
                del self._running[key]
