"""The work of a run that is under way: pieces go out, records come back and are on disk before they are announced."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.exceptions import LeftOutWarning
from layerbounds.network.agenda import Agenda, Worth
from layerbounds.network.choices import Choice
from layerbounds.network.dispatch import Dispatch
from layerbounds.network.engines import Engine
from layerbounds.network.entries import Entry
from layerbounds.network.failures import write_failures
from layerbounds.network.given import Given
from layerbounds.network.pieces import Finished, Piece
from layerbounds.network.result import NetworkRun
from layerbounds.network.sources import Source

#: Called after each piece of work: (sets with first bounds, sets in all, name of the layer).
Progress = Callable[[int, int, str], None]


@dataclass
class Job:
    """How a run is carried out.

    Attributes
    ----------
    run : NetworkRun
        What is known so far.
    source : Source
    choices : list of Choice
    methods : dict of int to dict of str to str
        For each choice, what its methods are called, and how they are written.
    limit : float
        Seconds of search for each set at most.
    seed : int
    backend : str
    engine : Engine
    given : Given
        Weights from elsewhere.
    progress : callable or None
    """

    run: NetworkRun
    source: Source
    choices: list[Choice]
    methods: dict[int, dict[str, str]]
    limit: float
    seed: int
    backend: str
    engine: Engine
    given: Given
    progress: Progress | None = None
    _left_out: set[tuple[int, int, int]] = field(default_factory=set)

    def carry_out(self, worth: Worth | None, deadline: float) -> None:
        """Work until everything that is asked for is done, time is up, or Ctrl-C.

        Parameters
        ----------
        worth : Worth or None
            None for first bounds alone.
        deadline : float
            On the clock of `time.perf_counter`.
        """
        agenda = Agenda(
            grid=self.run.grid,
            choices=self.choices,
            folder=self.run.folder,
            methods=self.methods,
            limit=self.limit,
            worth=worth,
            given=self.given,
            deadline=deadline,
            seed=self.seed,
            backend=self.backend,
            left_out=self._left_out,
        )

        def keep(finished: Finished) -> None:
            piece = finished.piece
            entry = self._entry(piece)
            self.run.folder.put(entry, piece.chunk, finished.record)
            if self.run.failures.pop((*piece.entry, piece.chunk), None) is not None:
                write_failures(self.run.folder.path, self.run.grid, self.run.failures)
            agenda.returned(piece)
            self._announce(entry)

        def drop(piece: Piece, reason: str) -> None:
            agenda.failed(piece)
            entry = self._entry(piece)
            self.run.failures[*piece.entry, piece.chunk] = reason
            write_failures(self.run.folder.path, self.run.grid, self.run.failures)
            text = f"layer {entry.layer.name!r}, {entry.choice.name}: {_rows(piece.rows)} left out: {reason}"
            warnings.warn(text, LeftOutWarning, stacklevel=4)

        try:
            Dispatch(self.engine, agenda.take, self._handle, keep, drop, deadline).run()
        except KeyboardInterrupt:
            self.run.interrupted = True
            # It may have come after a record was written, and before its numbers were taken over.
            for entry in self.run.entries:
                for chunk in range(len(entry.chunks)):
                    self.run.folder.take(entry, chunk)

    def _entry(self, piece: Piece) -> Entry:
        layer, choice = piece.entry
        return self.run.grid[layer][choice]

    def _handle(self, piece: Piece) -> Any:
        of_layer = self.run.grid[piece.entry[0]]
        able = [choice for entry, choice in zip(of_layer, self.choices, strict=True) if entry.refused is None]
        return self.engine.handle(self.source, piece.entry[0], of_layer[0].layer.digest, able)

    def _announce(self, entry: Entry) -> None:
        if self.progress is not None:
            limits = np.concatenate([e.limit for e in self.run.entries])
            self.progress(int(np.count_nonzero(limits >= 0)), len(limits), entry.layer.name)


def _rows(rows: Sequence[int]) -> str:
    """How messages call the rows of a chunk."""
    return f"output channel {rows[0]} is" if len(rows) == 1 else f"output channels {min(rows)} to {max(rows)} are"


def until(begin: float, seconds: float | None) -> float:
    """The clock's time so many seconds after another."""
    return float("inf") if seconds is None else begin + seconds


def now() -> float:
    """The clock of deadlines."""
    return time.perf_counter()
