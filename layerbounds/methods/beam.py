"""K-best beam search."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.rounding import beam as search
from layerbounds.kernels.quantization.rounding import coordinate_descent as descend
from layerbounds.kernels.successive import factorize
from layerbounds.methods.base import ChannelView, chosen_levels
from layerbounds.search.quantization.preparation import factorize_ordered


def _factors(gram: Float, exponent: float) -> tuple[Int, tuple[Float, Float]]:
    _, order, ordered, _ = factorize_ordered(gram, exponent)
    factors = factorize(ordered)
    assert factors is not None
    return order, factors


def beam(view: ChannelView, width: int = 256, order_exponent: float = 0.0, polish: bool = True) -> Float:
    """Fix weights one after the other and keep the ``width`` best partial assignments (the M-algorithm).

    Anderson & Mohan, "Sequential coding algorithms" (IEEE Trans. Commun. 1984), in the V-BLAST order.

    Parameters
    ----------
    view : ChannelView
    width : int
    order_exponent : float
        λ of the elimination order: the variable fixed next has the largest H_ii^λ times its Schur complement.
    polish : bool
        End with coordinate descent and pair moves.
    """
    if width < 1:
        raise InputError(f"width is {width}; keep at least one partial assignment.")
    order, factors = view.once(("beam", order_exponent), lambda: _factors(view.gram, order_exponent))
    choice = np.zeros(len(order), dtype=np.int64)
    ordered = np.ascontiguousarray(view.levels[order])
    search(int(width), factors[0], factors[1], view.target[order], ordered, view.count[order], choice)
    unordered = np.empty_like(choice)
    unordered[order] = choice
    if polish:
        descend(view.gram, view.target, view.levels, view.count, unordered, True, 100 * len(choice))
    return chosen_levels(view, unordered)
