"""A second thread for one channel: large-neighbourhood search beside the branch and bound."""

from __future__ import annotations

import math
import threading

from layerbounds.arrays import Int
from layerbounds.proofs import Control
from layerbounds.search.quantization.neighbourhoods import Neighbourhoods


class Companion:
    """Looks for better points until it is stopped; its point never enters a proof, only the incumbent.

    Parameters
    ----------
    neighbourhoods : Neighbourhoods
        With a generator of its own.
    control : Control
    most : float
        Calls after which it stops by itself.
    """

    def __init__(self, neighbourhoods: Neighbourhoods, control: Control, most: float = math.inf) -> None:
        self._neighbourhoods = neighbourhoods
        self._control = control
        self._most = most
        #: Calls so far.
        self.calls = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._found = (neighbourhoods.value, neighbourhoods.best.copy())
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while self.calls < self._most and not self._stop.is_set() and self._control.remaining() > 0:
            self.calls += 1
            if self._neighbourhoods.improve():
                with self._lock:
                    self._found = (self._neighbourhoods.value, self._neighbourhoods.best.copy())

    def best(self) -> tuple[float, Int]:
        """Objective and level indices of the best point so far."""
        with self._lock:
            return self._found

    @property
    def busy(self) -> bool:
        """Whether it is still looking."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._thread.join()
