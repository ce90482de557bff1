"""Elimination of the inputs of a unit from two matrices at once (docs/shared-bounds.md).

⟨A_SS⁻¹, M_SS⟩ is what a set S of inputs is worth. Eliminating an input i of pivot d leaves A − yaᵀ and M − yxᵀ − xyᵀ of
the others, with a = A_i, y = a/d and x = M_i − ½ M_ii y, and adds M_ii/d, however many rows M stands for.
"""

from __future__ import annotations

from layerbounds.kernels.compilation import REORDER, kernel

#: What becomes of an input: it counts, or it nearly depends on those before it and is passed over.
COUNTS, PASSED = 1, 2


@kernel(error_model="numpy", fastmath=REORDER, nested=True)
def eliminate_rows(begin, size, stop, floor, panel, second, scaled, y, state, peak):
    """Eliminate the inputs of a unit from their own rows, columns ``begin`` to ``stop``; returns what they are worth.

    Parameters
    ----------
    floor
        An input whose pivot is not above this is passed over: its rows become zero.
    panel, second
        Rows of A and M, shape (size, n), upper triangle; ``second`` becomes x.
    scaled, y
        Results: the rows a and y.
    state
        Result: `COUNTS` or `PASSED` for each input of the unit.
    peak
        Result: ``peak[at]`` is raised to the largest diagonal entry of M.
    """
    value = 0.0
    for i in range(size):
        at = begin + i
        source, moment = panel[i], second[i]
        row, quotient = scaled[i], y[i]
        pivot = source[at]
        if not pivot > floor[at]:
            state[at] = PASSED
            for k in range(at, stop):
                row[k] = 0.0
                quotient[k] = 0.0
                moment[k] = 0.0
            continue
        state[at] = COUNTS
        peak[at] = max(peak[at], moment[at])
        inverse = 1.0 / pivot
        half = 0.5 * moment[at]
        value += moment[at] * inverse
        for k in range(at, stop):
            row[k] = source[k]
            quotient[k] = source[k] * inverse
            moment[k] -= half * quotient[k]
        for j in range(i + 1, size):
            f, g, h = row[begin + j], quotient[begin + j], moment[begin + j]
            target, other = panel[j], second[j]
            for k in range(begin + j, stop):
                target[k] -= f * quotient[k]
                other[k] -= g * moment[k] + h * quotient[k]
    return value


@kernel(error_model="numpy", fastmath=REORDER, nested=True)
def update_row(j, stop, size, scaled, y, x, row, other):
    """Row j of A and M after the inputs of a unit, from the diagonal to ``stop``, in place."""
    i = 0
    while i + 3 <= size:
        f0, f1, f2 = scaled[i, j], scaled[i + 1, j], scaled[i + 2, j]
        g0, g1, g2 = y[i, j], y[i + 1, j], y[i + 2, j]
        h0, h1, h2 = x[i, j], x[i + 1, j], x[i + 2, j]
        y0, y1, y2 = y[i], y[i + 1], y[i + 2]
        x0, x1, x2 = x[i], x[i + 1], x[i + 2]
        for k in range(j, stop):
            row[k] -= f0 * y0[k] + f1 * y1[k] + f2 * y2[k]
            other[k] -= g0 * x0[k] + h0 * y0[k] + g1 * x1[k] + h1 * y1[k] + g2 * x2[k] + h2 * y2[k]
        i += 3
    while i < size:
        f, g, h = scaled[i, j], y[i, j], x[i, j]
        y0, x0 = y[i], x[i]
        for k in range(j, stop):
            row[k] -= f * y0[k]
            other[k] -= g * x0[k] + h * y0[k]
        i += 1


@kernel(error_model="numpy", nested=True)
def all_count(begin, end, state):
    """Whether no input was passed over."""
    for i in range(begin, end):
        if state[i] != COUNTS:
            return False
    return True
