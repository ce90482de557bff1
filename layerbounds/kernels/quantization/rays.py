"""Depth-first enumeration over all scales at once: every node carries the interval of scales that it may still serve.

With t = s₀/s and the target ω in units of s₀, a choice of codes q at the scale s has the error s²·F(q, t),

    F(q, t) = (q − tω)ᵀH(q − tω),        f < C  ⇔  F(q, t) − C t² < 0        (C in units of s₀²),

so that all scales are points of one ray. A cell of the ray is searched at once: t = middle + τ, lo ≤ τ ≤ hi. With
multipliers h(τ) = h₀ + τh₁ of the ends of the box (docs/scales.md) a node with k free variables has

    psi(τ) = min_z F(z, t) − 2h(τ)ᵀz = A − 2Bτ + Gτ²,        its minimiser z(τ) = z + τT,

where T and G depend on the depth alone. For every diagonal 0 ⪯ D ⪯ H on the free block

    F(q, t) ≥ psi(τ) + Σ_i φ_i(τ),        φ_i(τ) = min_{v in L_i} [2h_i(τ)v + d_i(v − z_i − τT_i)²].

φ_i is d_iT_i²τ² plus a minimum of affine functions, which lies above its chord. Hence the sum lies above the parabola
with the curvature G + Σ d_iT_i² through its values at the two ends of the node's interval; subtracting C t² leaves a
parabola, and the interval shrinks to where that is negative. A node without such a τ is pruned.

Arrays
------
pivots, shifts, weights, inverses, levels, count, low, high, chosen, lower, upper, position, cut, best, nodes, reach
    As in `layerbounds.kernels.quantization.enumeration`; ``cut`` is C.
middle : float
    t where τ = 0.
span : (2,) float64
    Least and largest t at which a leaf may be valued.
slope : (n + 1, n) float64
    Row k: T of the first k variables.
quad, bend : (n + 1,) float64
    G, and G + Σ d_iT_i², of every depth.
tilts : (2, n) float64
    h₀ and h₁; the sign of h(τ) is the same in the whole cell.
tilted : (m,) int64
    Increasing indices of the variables with tilts.
floors : (2, n + 1) float64
    Lower bound on Σ 2h_i(τ)v_i of the first k variables, constant and slope.
z : (n + 1, n); const, linear, lo, hi : (n + 1,) float64
    z, A, B and the interval of the node with k free variables; row n is given. State.
left, right, base_left, base_right : (n + 1,) float64
    Where the node's bound was evaluated last, and psi + Σ φ_i there less the term of variable k − 1. State.
centre : (n,) float64
    Where the levels of each variable are tried first. State.
extreme : (1,) float64
    Largest value of a parabola at the end of an interval that was shrunk, for the rounding allowance.
active, forms, form_moves, form_units, form_inverses, form_weights
    Split cuts, as in `layerbounds.kernels.quantization.enumeration`: v_jᵀq is an integer, its terms are like φ_i.
form_slope : (n + 1, cuts) float64; form_bend : (n + 1,) float64
    v_jᵀT, and the curvature of psi + Σ φ with the joint minorant, of every depth.
form_values : (n + 1, cuts) float64
    v_jᵀz over the free variables. State.
wide : (n + 1,) float64
    For each depth the widest interval at whose ends a node's bound was evaluated, for the same.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel
from layerbounds.kernels.quantization.enumeration import _nearest_left, _open_level

#: Intervals shrink by this share less than computed: docs/numerics.md charges what the roots' rounding may cut off.
GUARD = 1e-11


@kernel(force_inline=True)
def _negative_part(a, qa, b, qb, bend, lo, hi):
    """Hull of where the parabola of curvature ``bend`` through (a, qa) and (b, qb) is negative, within [lo, hi].

    An empty one has its left end on the right.
    """
    length = b - a
    if qa < 0.0 and qb < 0.0:
        return lo, hi
    if length <= 0.0:
        return (lo, hi) if qa < 0.0 else (1.0, -1.0)
    m = bend * length * length
    falls = qa - qb + m
    rises = qb - qa + m
    disc = falls * falls - 4.0 * m * qa
    if qa >= 0.0 and qb >= 0.0 and (m <= 0.0 or falls <= 0.0 or rises <= 0.0 or disc <= 0.0):
        return 1.0, -1.0
    root = np.sqrt(max(disc, 0.0))
    if qa >= 0.0:
        x = 2.0 * qa / (falls + root) if falls > 0.0 else (root - falls) / (-2.0 * m)
        lo = max(lo, a + length * x * (1.0 - GUARD))
    if qb >= 0.0:
        x = 2.0 * qb / (rises + root) if rises > 0.0 else (root - rises) / (-2.0 * m)
        hi = min(hi, b - length * x * (1.0 - GUARD))
    return lo, hi


@kernel(fastmath=REORDER, force_inline=True)
def _rest_plain(k, delta, a, b, z, slope, shifts, low, high, weights):
    """Move the centre; Σ φ_i on the integers low…high without tilts, at two ends."""
    parent, child, shift, move, weight = z[k + 1], z[k], shifts[k], slope[k], weights[k]
    at_a = 0.0
    at_b = 0.0
    for i in range(k):
        x = parent[i] + shift[i] * delta
        child[i] = x
        xa = x + a * move[i]
        xb = x + b * move[i]
        ra = xa - min(max(np.rint(xa), low[i]), high[i])
        rb = xb - min(max(np.rint(xb), low[i]), high[i])
        at_a += weight[i] * (ra * ra)
        at_b += weight[i] * (rb * rb)
    return at_a, at_b


@kernel(fastmath=REORDER, force_inline=True)
def _rest_tilted(k, delta, a, b, z, slope, shifts, tilts, low, high, weights, inverses):
    """The same with tilts of all variables."""
    parent, child, shift, move, weight, inverse = z[k + 1], z[k], shifts[k], slope[k], weights[k], inverses[k]
    constant, linear = tilts[0], tilts[1]
    at_a = 0.0
    at_b = 0.0
    for i in range(k):
        x = parent[i] + shift[i] * delta
        child[i] = x
        xa = x + a * move[i]
        xb = x + b * move[i]
        ha = constant[i] + a * linear[i]
        hb = constant[i] + b * linear[i]
        va = min(max(np.rint(xa - ha * inverse[i]), low[i]), high[i])
        vb = min(max(np.rint(xb - hb * inverse[i]), low[i]), high[i])
        ra = va - xa
        rb = vb - xb
        at_a += 2.0 * ha * va + weight[i] * (ra * ra)
        at_b += 2.0 * hb * vb + weight[i] * (rb * rb)
    return at_a, at_b


@kernel()
def _rest_table(k, delta, a, b, z, slope, shifts, tilts, levels, weights):
    """The same on level tables of shape (levels, n)."""
    parent, child, shift, move, weight = z[k + 1], z[k], shifts[k], slope[k], weights[k]
    at_a = 0.0
    at_b = 0.0
    for i in range(k):
        x = parent[i] + shift[i] * delta
        child[i] = x
        xa = x + a * move[i]
        xb = x + b * move[i]
        ha = tilts[0, i] + a * tilts[1, i]
        hb = tilts[0, i] + b * tilts[1, i]
        best_a = np.inf
        best_b = np.inf
        for j in range(levels.shape[0]):
            v = levels[j, i]
            best_a = min(best_a, 2.0 * ha * v + weight[i] * ((v - xa) * (v - xa)))
            best_b = min(best_b, 2.0 * hb * v + weight[i] * ((v - xb) * (v - xb)))
        at_a += best_a
        at_b += best_b
    return at_a, at_b


@kernel(fastmath=REORDER, force_inline=True)
def _units(k, a, b, z, slope, tilts, low, high, weights, inverses):
    """Σ φ_i on the integers low…high at two ends, the centre being where it is."""
    centre, move, weight, inverse = z[k], slope[k], weights[k], inverses[k]
    constant, linear = tilts[0], tilts[1]
    at_a = 0.0
    at_b = 0.0
    for i in range(k):
        xa = centre[i] + a * move[i]
        xb = centre[i] + b * move[i]
        ha = constant[i] + a * linear[i]
        hb = constant[i] + b * linear[i]
        va = min(max(np.rint(xa - ha * inverse[i]), low[i]), high[i])
        vb = min(max(np.rint(xb - hb * inverse[i]), low[i]), high[i])
        ra = va - xa
        rb = vb - xb
        at_a += 2.0 * ha * va + weight[i] * (ra * ra)
        at_b += 2.0 * hb * vb + weight[i] * (rb * rb)
    return at_a, at_b


@kernel(fastmath=REORDER, force_inline=True)
def _cuts(k, m, delta, fixed, a, b, values, moves, forms, slope, weights):
    """Values of the first m integer forms at the moved centre; their terms at two ends."""
    parent, child, move, row, weight, turn = values[k + 1], values[k], moves[k], forms[k], weights[k], slope[k]
    at_a = 0.0
    at_b = 0.0
    for j in range(m):
        y = parent[j] + move[j] * delta - row[j] * fixed
        child[j] = y
        ra = y + a * turn[j]
        rb = y + b * turn[j]
        ra -= np.rint(ra)
        rb -= np.rint(rb)
        at_a += weight[j] * (ra * ra)
        at_b += weight[j] * (rb * rb)
    return at_a, at_b


@kernel(force_inline=True)
def _term(i, x, h, weight, inverse, uniform, levels, low, high):
    """φ_i at one point of the ray."""
    if uniform:
        v = min(max(np.rint(x - h * inverse), low), high)
        return 2.0 * h * v + weight * ((v - x) * (v - x))
    best = np.inf
    for j in range(levels.shape[0]):
        v = levels[j, i]
        best = min(best, 2.0 * h * v + weight * ((v - x) * (v - x)))
    return best


@kernel(force_inline=True)
def _rest(k, delta, a, b, uniform, z, slope, shifts, tilts, tilted, levels, low, high, weights, inverses):
    """Move the centre of the first k variables; Σ φ_i at two ends."""
    if not uniform:
        return _rest_table(k, delta, a, b, z, slope, shifts, tilts, levels, weights)
    if tilted.shape[0] > 8:
        return _rest_tilted(k, delta, a, b, z, slope, shifts, tilts, low, high, weights, inverses)
    at_a, at_b = _rest_plain(k, delta, a, b, z, slope, shifts, low, high, weights)
    for i in tilted:
        if i >= k:
            break
        xa, ha = z[k, i] + a * slope[k, i], tilts[0, i] + a * tilts[1, i]
        xb, hb = z[k, i] + b * slope[k, i], tilts[0, i] + b * tilts[1, i]
        at_a += _term(i, xa, ha, weights[k, i], inverses[k, i], True, levels, low[i], high[i])
        at_a -= _term(i, xa, 0.0, weights[k, i], inverses[k, i], True, levels, low[i], high[i])
        at_b += _term(i, xb, hb, weights[k, i], inverses[k, i], True, levels, low[i], high[i])
        at_b -= _term(i, xb, 0.0, weights[k, i], inverses[k, i], True, levels, low[i], high[i])
    return at_a, at_b


@kernel(force_inline=True)
def _excess(t, c0, c1, g, cut, middle):
    """Psi − C t² at one point of the cell."""
    return c0 + t * (g * t - 2.0 * c1) - cut * ((middle + t) * (middle + t))


@kernel(force_inline=True)
def _leaf_error(c0, c1, g, middle, span):
    """The error of given codes at the best t of all, qᵀHq/ωᵀHq, as far as it is allowed."""
    along = c1 + g * middle
    t = span[1]
    if along > 0.0:
        t = max(span[0], min(t, (c0 + middle * (2.0 * c1 + middle * g)) / along))
    return (c0 + (t - middle) * (g * (t - middle) - 2.0 * c1)) / (t * t)


@kernel(force_inline=True)
def _leave(k, value, pick, va, vb, wa, wb, count, lower, upper):
    """Give up the levels beyond a pruned one where those cost more at every scale: beyond the vertices at both ends."""
    if value >= max(max(va, vb), max(wa, wb)) and pick == upper[k] - 1:
        upper[k] = count[k]
    if value <= min(min(va, vb), min(wa, wb)) and pick == lower[k] + 1:
        lower[k] = -1


@kernel()
def form_slopes(active, forms, form_units, form_weights, slope, quad, form_slope, form_bend):
    """Fill ``form_slope`` and ``form_bend`` where forms are tested."""
    n = slope.shape[1]
    for k in range(n + 1):
        total = quad[k]
        for j in range(active[k]):
            turn = 0.0
            for i in range(k):
                turn += forms[i, j] * slope[k, i]
            form_slope[k, j] = turn
            total += form_weights[k, j] * (turn * turn)
        if active[k] > 0:
            for i in range(k):
                total += form_units[k, i] * (slope[k, i] * slope[k, i])
        form_bend[k] = total


@kernel()
def slopes(pivots, shifts, weights, slope, quad, bend):
    """Fill the rows of ``slope``, ``quad`` and ``bend`` below row n."""
    n = pivots.shape[0]
    for k in range(n - 1, -1, -1):
        move = slope[k + 1, k]
        quad[k] = quad[k + 1] + pivots[k] * (move * move)
        total = 0.0
        for i in range(k):
            slope[k, i] = slope[k + 1, i] - shifts[k, i] * move
            total += weights[k, i] * (slope[k, i] * slope[k, i])
        bend[k] = quad[k] + total
    total = 0.0
    for i in range(n):
        total += weights[n, i] * (slope[n, i] * slope[n, i])
    bend[n] = quad[n] + total


@kernel(force_inline=True)
def _open(k, pivot, tilts, z, slope, lo, hi, centre, levels, count, lower, upper):
    """Begin with the levels of variable k."""
    t = 0.5 * (lo[k + 1] + hi[k + 1])
    centre[k] = z[k + 1, k] + t * slope[k + 1, k] - (tilts[0, k] + t * tilts[1, k]) / pivot
    _open_level(k, centre[k], levels, count, lower, upper)


@kernel()
def enumerate_rays(
    max_nodes, collect, uniform, middle, span, pivots, shifts, weights, inverses, levels, count, low, high, slope, quad,
    bend, tilts, tilted, floors, z, const, linear, lo, hi, left, right, base_left, base_right, centre, chosen, lower,
    upper, position, cut, best, nodes, extreme, reach, wide, active, forms, form_moves, form_units, form_inverses,
    form_weights, form_slope, form_bend, form_values,
):  # fmt: skip
    """Continue the search of a cell until it is exhausted or ``max_nodes`` more nodes were generated.

    Parameters
    ----------
    max_nodes : int
    collect : bool
        Return at every leaf below the cut, and leave the cut as it is.
    uniform : bool
        Whether the levels of variable i are the integers from low[i] to high[i].
    middle and all others
        The arrays that the module describes.

    Returns
    -------
    bool
        Whether the cell is exhausted.
    """
    n = pivots.shape[0]
    k = position[0]
    if k == n + 1:
        return True
    if k == n:
        k = n - 1
        _open(k, pivots[k], tilts, z, slope, lo, hi, centre, levels, count, lower, upper)
    limit = nodes[0] + max_nodes
    done = False
    while nodes[0] < limit:
        pick = _nearest_left(k, centre[k], levels, count, lower, upper)
        if pick < 0:
            k += 1
            if k == n:
                done = True
                break
            continue
        nodes[0] += 1
        c = cut[0]
        value = levels[pick, k]
        x, move, p = z[k + 1, k], slope[k + 1, k], pivots[k]
        h0, h1 = tilts[0, k], tilts[1, k]
        r = value - x
        a, b = lo[k + 1], hi[k + 1]
        c0 = const[k + 1] + p * (r * r) + 2.0 * h0 * value
        c1 = linear[k + 1] + p * r * move - h1 * value
        g = quad[k]
        qa = _excess(a, c0, c1, g, c, middle) + floors[0, k] + a * floors[1, k]
        qb = _excess(b, c0, c1, g, c, middle) + floors[0, k] + b * floors[1, k]
        na, nb = _negative_part(a, qa, b, qb, g - c, a, b)
        if na > nb:
            va, vb = x + a * move - (h0 + a * h1) / p, x + b * move - (h0 + b * h1) / p
            _leave(k, value, pick, va, vb, va, vb, count, lower, upper)
            continue
        extreme[0] = max(extreme[0], max(qa, qb))
        if k == 0:
            error = _leaf_error(c0, c1, g, middle, span)
            if not error < c:
                continue
            chosen[0] = pick
            reach[0] = max(reach[0], abs(r))
            for i in range(n):
                best[i] = chosen[i]
            if collect:
                break
            cut[0] = error
            continue
        d = weights[k + 1, k]
        ea, eb = left[k + 1], right[k + 1]
        ra, rb = r - ea * move, r - eb * move
        ha, hb = h0 + ea * h1, h0 + eb * h1
        ta, tb = middle + ea, middle + eb
        qa = base_left[k + 1] + 2.0 * ha * value + d * (ra * ra) - c * (ta * ta)
        qb = base_right[k + 1] + 2.0 * hb * value + d * (rb * rb) - c * (tb * tb)
        a, b = _negative_part(ea, qa, eb, qb, bend[k + 1] - c, na, nb)
        if a > b:
            if d > 0.0:
                # Farther levels must cost more in the first test, too: it may have cut off what the second one leaves.
                va, vb = x + ea * move - (h0 + ea * h1) / p, x + eb * move - (h0 + eb * h1) / p
                wa, wb = x + ea * move - ha / d, x + eb * move - hb / d
                _leave(k, value, pick, va, vb, wa, wb, count, lower, upper)
            continue
        extreme[0] = max(extreme[0], max(qa, qb))
        chosen[k] = pick
        # Before the test that depends on it: what rounding may have hidden counts for pruned nodes as well.
        reach[k] = max(reach[k], abs(r))
        wide[k] = max(wide[k], b - a)
        pa, pb = _rest(k, r, a, b, uniform, z, slope, shifts, tilts, tilted, levels, low, high, weights, inverses)
        pa += c0 + a * (g * a - 2.0 * c1)
        pb += c0 + b * (g * b - 2.0 * c1)
        ta, tb = middle + a, middle + b
        qa, qb = pa - c * (ta * ta), pb - c * (tb * tb)
        na, nb = _negative_part(a, qa, b, qb, bend[k] - c, a, b)
        if na > nb:
            continue
        extreme[0] = max(extreme[0], max(qa, qb))
        m = active[k]
        if m > 0:
            qa, qb = _cuts(k, m, r, x, na, nb, form_values, form_moves, forms, form_slope, form_weights)
            ua, ub = _units(k, na, nb, z, slope, tilts, low, high, form_units, form_inverses)
            qa += ua + _excess(na, c0, c1, g, c, middle)
            qb += ub + _excess(nb, c0, c1, g, c, middle)
            na, nb = _negative_part(na, qa, nb, qb, form_bend[k] - c, na, nb)
            if na > nb:
                continue
            extreme[0] = max(extreme[0], max(qa, qb))
        const[k], linear[k], lo[k], hi[k], left[k], right[k] = c0, c1, na, nb, a, b
        k -= 1
        d, inverse = weights[k + 1, k], inverses[k + 1, k]
        xa, ha = z[k + 1, k] + a * slope[k + 1, k], tilts[0, k] + a * tilts[1, k]
        xb, hb = z[k + 1, k] + b * slope[k + 1, k], tilts[0, k] + b * tilts[1, k]
        base_left[k + 1] = pa - _term(k, xa, ha, d, inverse, uniform, levels, low[k], high[k])
        base_right[k + 1] = pb - _term(k, xb, hb, d, inverse, uniform, levels, low[k], high[k])
        _open(k, pivots[k], tilts, z, slope, lo, hi, centre, levels, count, lower, upper)
    position[0] = n + 1 if done else k
    return done
