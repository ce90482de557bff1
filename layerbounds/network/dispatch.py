"""Pieces go out to workers and come back; those of workers that die are begun again."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import joblib
from threadpoolctl import threadpool_limits

from layerbounds.cancellation import Cancelled, cancellable
from layerbounds.exceptions import InputError, LayerboundsError, first_line
from layerbounds.network.engines import Engine
from layerbounds.network.handles import Handle
from layerbounds.network.pieces import Finished, Piece, carry_out
from layerbounds.network.shelf import SHELF, prepare_process

#: How often a piece is begun whose worker dies, and how often in a row workers may die before the run ends.
ATTEMPTS, DEATHS = 3, 9
#: Seconds that a worker rests for which there is nothing to do, and seconds of it for each worker: a scheduler of many
#: has more to do than to tell them to rest.
REST, REST_OF_EACH = 0.02, 0.005
#: A piece waits for its worker, so that none waits for a piece; of so many workers one more.
FOR_EACH_READY = 8


@dataclass(frozen=True)
class Outcome:
    """What comes back from a worker.

    Attributes
    ----------
    ticket : int
        Of the piece.
    finished : Finished or None
    error : Exception or None
        What is wrong with the run, or with the piece.
    """

    ticket: int
    finished: Finished | None = None
    error: Exception | None = None


def work(ticket: int, piece: Piece, handle: Handle, cancel: threading.Event | None) -> Outcome:
    """What a worker does.

    Parameters
    ----------
    ticket : int
    piece : Piece
    handle : Handle
    cancel : threading.Event or None
        Ends the piece where Ctrl-C cannot reach it: in another thread of the process.

    Returns
    -------
    Outcome
        Empty where it was cancelled.
    """
    try:
        prepare_process(alone=cancel is not None)
        if cancel is not None:
            # The BLAS has one thread already: this block would end while other pieces need it.
            with cancellable(cancel):
                return Outcome(ticket, carry_out(piece, SHELF.problem(handle, piece.choice, piece.fingerprint)))
        with threadpool_limits(limits=1):
            return Outcome(ticket, carry_out(piece, SHELF.problem(handle, piece.choice, piece.fingerprint)))
    except (Cancelled, KeyboardInterrupt) as end:
        # In the main thread, where one worker works, it is Ctrl-C itself, which sets the event, too.
        if cancel is None or threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt from end
        return Outcome(ticket)
    except LayerboundsError as error:
        return Outcome(ticket, error=error)
    except Exception as error:
        # The error itself may not travel.
        kind = MemoryError if isinstance(error, MemoryError) else RuntimeError
        return Outcome(ticket, error=kind(f"{type(error).__name__}: {first_line(error)}"))


class Dispatch:
    """Keeps workers busy.

    Parameters
    ----------
    engine : Engine
    take : callable
        The next piece; None where there is none now, or none any more if no piece is out.
    handle : callable
        How the worker of a piece gets its layer.
    keep : callable
        Called with what is finished.
    drop : callable
        Called with a piece that cannot be done, and the reason.
    deadline : float
        On the clock of `time.perf_counter`: no piece begins after it.
    """

    def __init__(
        self,
        engine: Engine,
        take: Callable[[], Piece | None],
        handle: Callable[[Piece], Any],
        keep: Callable[[Finished], None],
        drop: Callable[[Piece, str], None],
        deadline: float,
    ) -> None:
        self._engine, self._take, self._handle, self._keep, self._drop = engine, take, handle, keep, drop
        self._deadline = deadline
        self._rest = max(REST, REST_OF_EACH * engine.workers)
        self._most = engine.workers + 1 + engine.workers // FOR_EACH_READY
        self._ticket = 0
        #: Pieces with their handles that wait for a worker.
        self._ready: deque[tuple[int, Piece, Any, threading.Event | None]] = deque()
        #: Pieces that wait, or that workers have, and of these which have begun.
        self._out: dict[int, Piece] = {}
        self._begun: dict[int, threading.Event | None] = {}
        #: Pieces that come before those of the agenda: whose workers have died, one at a time, and others.
        self._suspects: deque[Piece] = deque()
        self._others: deque[Piece] = deque()
        self._lost: dict[tuple[tuple[int, int], int], int] = {}
        self._deaths = 0
        self._alone = self._over = False

    def run(self) -> None:
        """Work until there is no piece any more.

        Raises
        ------
        LayerboundsError
            If something is wrong with the run, or no workers can be had.
        """
        while not self._over:
            try:
                self._fill()
                self._round()
            except _DeathError as death:
                self._count(death.reason)
                self._engine.alive()
                self._engine.forget()

    def _round(self) -> None:
        """Work with one call of joblib, until there is no piece any more or workers die."""
        if self._over:
            return
        results: Generator[Outcome | None] | None = None
        try:
            while True:
                try:
                    if results is None:
                        with joblib.parallel_config(**self._engine.options, n_jobs=self._engine.workers):
                            side_by_side = joblib.Parallel(
                                return_as="generator_unordered", pre_dispatch=self._engine.workers, batch_size=1
                            )
                        results = side_by_side(self._tasks())
                    outcome = next(results)
                except StopIteration:
                    return
                except LayerboundsError:
                    raise
                except Exception as error:
                    raise _DeathError(f"{type(error).__name__}: {first_line(error)}") from error
                if outcome is not None:
                    self._back(outcome)
                self._fill()
        finally:
            for event in list(self._begun.values()):
                if event is not None:
                    event.set()
            if results is not None:
                with warnings.catch_warnings():
                    # joblib warns of what it ends.
                    warnings.simplefilter("ignore")
                    results.close()

    def _tasks(self) -> Iterator[Any]:
        """For joblib, which asks from any thread when a worker is free."""
        while not self._over:
            try:
                ticket, piece, handle, cancel = self._ready.popleft()
            except IndexError:
                yield joblib.delayed(time.sleep)(self._rest)
                continue
            left = self._deadline - time.perf_counter()
            if left <= 0:
                del self._out[ticket]
                continue
            self._begun[ticket] = cancel
            timed = replace(piece, limit=min(piece.limit, left), total=min(piece.total, left))
            yield joblib.delayed(work)(ticket, timed, handle, cancel)

    def _fill(self) -> None:
        """Let a piece wait for each worker that may become free."""
        while len(self._out) < self._most and time.perf_counter() < self._deadline:
            if self._suspects or self._alone:
                # Whatever dies now, it is this piece that killed it.
                if self._out:
                    return
                self._alone = bool(self._suspects)
                if self._alone:
                    self._send(self._suspects.popleft())
                    return
            piece = self._others.popleft() if self._others else self._take()
            if piece is None:
                break
            self._send(piece)
        self._over = not self._out

    def _send(self, piece: Piece) -> None:
        self._ticket += 1
        self._out[self._ticket] = piece
        cancel = threading.Event() if self._engine.together else None
        try:
            handle = self._handle(piece)
        except LayerboundsError:
            raise
        except Exception as error:
            raise _DeathError(f"{type(error).__name__}: {first_line(error)}") from error
        self._ready.append((self._ticket, piece, handle, cancel))

    def _back(self, outcome: Outcome) -> None:
        """Take what has come back."""
        piece = self._out.pop(outcome.ticket)
        self._begun.pop(outcome.ticket, None)
        if outcome.finished is not None:
            self._deaths = 0
            self._keep(outcome.finished)
        elif outcome.error is None:
            raise KeyboardInterrupt
        elif isinstance(outcome.error, LayerboundsError):
            raise outcome.error
        elif isinstance(outcome.error, MemoryError):
            self._again(piece, str(outcome.error))
        else:
            self._drop(piece, str(outcome.error))

    def _count(self, reason: str) -> None:
        """Workers have died: what they had is begun again, alone."""
        self._deaths += 1
        if self._deaths > DEATHS:
            raise InputError(
                f"the workers die again and again ({reason}); what was finished is kept: repeat the command with fewer "
                "jobs, or more memory, to go on."
            )
        self._ready.clear()
        for ticket, piece in self._out.items():
            if ticket in self._begun:
                self._again(piece, f"its worker died ({reason})")
            else:
                self._others.append(piece)
        self._out.clear()
        self._begun.clear()
        self._alone = False

    def _again(self, piece: Piece, reason: str) -> None:
        key = (piece.entry, piece.chunk)
        self._lost[key] = self._lost.get(key, 0) + 1
        if self._lost[key] < ATTEMPTS:
            self._suspects.append(piece)
        else:
            self._drop(piece, f"{reason}, {ATTEMPTS} times")


class _DeathError(Exception):
    """A worker is gone, and with it what all had."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
