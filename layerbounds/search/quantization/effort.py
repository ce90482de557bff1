"""How long the preparation of a large Gram matrix will take on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.kernels.factorization import cholesky, symmetric_inverse
from layerbounds.progress import listening, tell
from layerbounds.search.quantization.preparation import DOUBLE_SIZE

#: Preparations of fewer inputs take a minute at most and are not announced on standard error.
ANNOUNCED = 1000
#: Those of so many are said to who listens (`layerbounds.progress.telling`); of fewer they are over in a moment.
SAID = 200
#: What preparations of up to so many inputs take, in factorizations with inverse and product of as many inputs; by the
#: matrix half or twice as many. The first ones end with what shared forms and cuts need.
SMALL_WORK = ((400, 1100.0), (ANNOUNCED, 320.0))
#: Seconds from which on the user is told.
PATIENCE = 10.0
#: Inputs of the matrices that are timed, of a factorization and of a rank-one update.
SAMPLE, UPDATED = 768, 1500
#: Factorizations with inverse, products, and rank-one updates of all inputs.
Work = tuple[float, float, float]
#: Those that a preparation takes: with minorants in double precision up to `DOUBLE_SIZE` inputs, in single beyond.
DOUBLE_WORK, SINGLE_WORK = (36.0, 6.0, 2.0), (18.0, 6.0, 2.0)


@dataclass(frozen=True)
class Speed:
    """Seconds per cubed number of inputs of a factorization with inverse, a product, and as many rank-one updates."""

    factor: float
    product: float
    update: float


def measure(threads: int = 1) -> Speed:
    """Time small samples of each with one thread: some tenths of a second.

    Parameters
    ----------
    threads : int
        BLAS threads of the preparation. They are not timed, as other work on the machine makes small samples many
        times slower: each is taken to add half of what the first one does.
    """
    x = np.random.default_rng(0).normal(size=(UPDATED, UPDATED))
    sample = x[:SAMPLE, :SAMPLE]
    gram = sample @ sample.T + SAMPLE * np.eye(SAMPLE)

    def factorize() -> None:
        factor = cholesky(gram)
        assert factor is not None
        symmetric_inverse(factor)

    def update() -> None:
        nonlocal x
        x -= np.outer(x[0], x[1])

    faster = 1.0 + 0.5 * (threads - 1)
    with threadpool_limits(limits=1):
        return Speed(
            _seconds(factorize) / SAMPLE**3 / faster,
            _seconds(lambda: sample @ sample) / SAMPLE**3 / faster,
            _seconds(update) / UPDATED**2,
        )


def _seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def preparation_seconds(n: int, speed: Speed, work: Work | None = None) -> float:
    """Roughly what the preparation of so many inputs takes, by default that of quantization."""
    factors, products, updates = work or (DOUBLE_WORK if n <= DOUBLE_SIZE else SINGLE_WORK)
    return float(n) ** 3 * (factors * speed.factor + products * speed.product + updates * speed.update)


def announce(n: int, threads: int, work: Work | None = None) -> None:
    """Say how long a preparation will take: to who listens, and on standard error if it is more than a moment.

    Parameters
    ----------
    n : int
    threads : int
        BLAS threads.
    work : tuple, optional
        What it takes; default: what the preparation of quantization does.
    """
    if n < (SAID if work is None and listening() else ANNOUNCED):
        return
    seconds = small_seconds(n) if n < ANNOUNCED else preparation_seconds(n, measure(threads), work)
    text = f"preparing {n} inputs: about {duration(seconds)}"
    tell(text)
    if n >= ANNOUNCED and seconds > PATIENCE:
        print(f"layerbounds: {text}", file=sys.stderr, flush=True)


def small_seconds(n: int) -> float:
    """Very roughly what the preparation of fewer than `ANNOUNCED` inputs takes, by timing a piece of it."""
    gram = np.eye(n) + 1.0 / n
    units = next(units for most, units in SMALL_WORK if n <= most)

    def piece() -> None:
        factor = cholesky(gram)
        assert factor is not None
        symmetric_inverse(factor)
        gram @ gram

    with threadpool_limits(limits=1):
        return units * _seconds(piece)


def duration(seconds: float) -> str:
    """Two digits: ``40 s``, ``12 min``, ``1.5 h``."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.2g} h"
