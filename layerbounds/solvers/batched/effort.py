"""What a group of rows takes: memory, and time on this machine."""

from __future__ import annotations

import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.arguments import readable
from layerbounds.exceptions import InputError
from layerbounds.search.quantization.effort import PATIENCE, duration

#: Matrices of the size of the Gram matrix: those in double precision that stay, those of the work at its peak.
STAY, WORK = 1, 2
#: Bytes of a weight: of the layer and the result, and of the rows that are worked on.
KEPT_BYTES, ROW_BYTES = 32, 44
#: What the interpreter, the libraries and compiled kernels take, and the states of blocks.
BASE_BYTES = 640 * 2**20
#: Bytes from which on the user is told.
LARGE = 10**9
#: Floating-point operations: per cubed number of inputs, and per weight and input.
CUBIC, PRODUCTS = 160.0, 180.0
#: Inputs of the product that is timed.
SAMPLE = 1024


def memory_needed(inputs: int, rows: int, at_once: int | None = None) -> int:
    """Roughly the peak of memory of a process that bounds the rows of a layer, in bytes.

    Parameters
    ----------
    inputs : int
        Live inputs.
    rows : int
    at_once : int, optional
        Rows that are worked on at a time; default: all.
    """
    worked_on = rows if at_once is None else min(at_once, rows)
    matrices = 8 * (STAY + WORK) * inputs**2
    return BASE_BYTES + matrices + inputs * (KEPT_BYTES * rows + ROW_BYTES * worked_on)


def rows_at_once(name: str, inputs: int, rows: int, limit: int | None) -> int:
    """How many rows can be worked on at a time within a limit of memory.

    Raises
    ------
    InputError
        If not even one can.
    """
    if limit is None:
        return rows
    room = limit - memory_needed(inputs, rows, 0)
    count = min(room // (ROW_BYTES * max(inputs, 1)), rows)
    if count < 1:
        least = readable(memory_needed(inputs, rows, 1))
        raise InputError(
            f"memory_limit is {readable(limit)}; layer {name!r} with {rows} rows of {inputs} inputs needs about "
            f"{least} at least."
        )
    pieces = -(-rows // count)
    return -(-rows // pieces)


def seconds_needed(inputs: int, rows: int, pieces: int, rate: float) -> float:
    """Roughly the time for so many rows at a rate of operations per second; every piece finds its own minorant."""
    return (pieces * CUBIC * float(inputs) ** 3 + PRODUCTS * float(inputs) ** 2 * rows) / rate


def measure(threads: int) -> float:
    """Operations per second of a product in single precision: some hundredths of a second."""
    x = np.random.default_rng(0).random((SAMPLE, SAMPLE), dtype=np.float32)
    taken = []
    with threadpool_limits(limits=threads):
        for _ in range(3):
            begin = time.perf_counter()
            x @ x
            taken.append(time.perf_counter() - begin)
    return 2.0 * SAMPLE**3 / min(taken)


def announce(inputs: int, rows: int, at_once: int, threads: int, device: str) -> None:
    """Say on standard error what a group will take, if that is much.

    Parameters
    ----------
    inputs, rows, at_once : int
        As in `memory_needed`.
    threads : int
    device : str
        The time is known for the processor alone.
    """
    memory = memory_needed(inputs, rows, at_once)
    pieces = -(-rows // at_once)
    if memory < LARGE and inputs < SAMPLE:
        return
    seconds = seconds_needed(inputs, rows, pieces, measure(threads)) if device == "cpu" else 0.0
    if memory < LARGE and seconds < PATIENCE:
        return
    said = [f"about {readable(memory)} of memory"] + ([f"{duration(seconds)}"] if seconds > 1.0 else [])
    times = f", {pieces} times {at_once} rows" if pieces > 1 else ""
    print(f"layerbounds: {rows} x {inputs}: {', '.join(said)}{times}", file=sys.stderr, flush=True)
