"""K-best beam search."""

from __future__ import annotations

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.kernels.quantization.rounding import beam as search
from layerbounds.kernels.quantization.rounding import coordinate_descent as descend
from layerbounds.kernels.successive import factorize, factors_in_order, rounding_order
from layerbounds.methods.base import ChannelView, check_damp, chosen_levels
from layerbounds.search.quantization.preparation import factorize_ordered

ORDERS = ("vblast", "columns", "activations")


def _factors(gram: Float, order: str, exponent: float, damp: float) -> tuple[Int, tuple[Float, Float]]:
    if order != "vblast":
        sequence = rounding_order(gram, order == "activations")
        return sequence, factors_in_order(gram, sequence, damp)
    _, sequence, ordered, _ = factorize_ordered(gram, exponent)
    if damp:
        return sequence, factors_in_order(gram, sequence, damp)
    factors = factorize(ordered)
    assert factors is not None
    return sequence, factors


def beam(
    view: ChannelView,
    width: int = 256,
    order_exponent: float = 0.0,
    polish: bool = True,
    order: str = "vblast",
    damp: float = 0.0,
) -> Float:
    """Fix weights one after the other and keep the ``width`` best partial assignments (the M-algorithm).

    Anderson & Mohan, "Sequential coding algorithms" (IEEE Trans. Commun. 1984), in the V-BLAST order. In the order of
    GPTQ, damped and without the polish it is the bounded beam of Cha et al., "CoreQ: Learning-Free Mismatch Correction
    and Successive Rounding for Quantization" (K-CoreQ, arXiv 2602.05902) on the layer's target.

    Parameters
    ----------
    view : ChannelView
    width : int
    order_exponent : float
        λ of the elimination order: the variable fixed next has the largest H_ii^λ times its Schur complement.
    polish : bool
        End with coordinate descent and pair moves.
    order : {"vblast", "columns", "activations"}
        What is fixed first: the elimination order, or that of GPTQ without or with ``act_order``.
    damp : float
        Fraction of the mean diagonal added before the factorization; raised tenfold while that breaks down.
    """
    if width < 1:
        raise InputError(f"width is {width}; keep at least one partial assignment.")
    one_of(order, "order", ORDERS)
    check_damp(damp)
    sequence, factors = view.once(
        ("beam", order, order_exponent, damp), lambda: _factors(view.gram, order, order_exponent, damp)
    )
    choice = np.zeros(len(sequence), dtype=np.int64)
    ordered = np.ascontiguousarray(view.levels[sequence])
    search(int(width), factors[0], factors[1], view.target[sequence], ordered, view.count[sequence], choice)
    unordered = np.empty_like(choice)
    unordered[sequence] = choice
    if polish:
        descend(view.gram, view.target, view.levels, view.count, unordered, True, 100 * len(choice))
    return chosen_levels(view, unordered)
