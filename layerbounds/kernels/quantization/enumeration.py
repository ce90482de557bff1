"""Depth-first Schnorr–Euchner enumeration on tilted centres, with a separable bound at every depth.

Variables are fixed from the last to the first of the prepared order, in grid units. For the first k variables free,
the others fixed, and multipliers ("tilts") h of the free ones, let

    psi = min_z f(z) − 2 hᵀz,        z its minimiser over the free variables, unconstrained.

For every diagonal 0 ⪯ D ⪯ H on the free block (docs/bounds.md)

    f(q) ≥ psi + Σ_i min_{v in L_i} [2 h_i v + d_i (v − z_i)²].

With h = 0 this is the partial sum of Schnorr & Euchner (Math. Programming 66, 1994) plus a separable bound; a tilt
h_i > 0 prices the lower end of the box, h_i < 0 the upper end. Fixing a variable keeps the tilts of the others and
costs O(k): psi grows by p_k (v − z_k)² + 2 h_k v and z moves along a precomputed direction. Tilts are improved by
Hildreth's dual coordinate ascent (Quarterly of Applied Math. 4, 1957) at nodes that the bound did not prune.

The state lives in arrays, so that a call can stop after some nodes and the next call goes on from there.

Arrays
------
pivots : (n,) float64
    Squared pivots p_k.
shifts : (n, n) float64
    ``shifts[k, :k]``: move of the centre of the first k variables for a unit move of variable k.
weights, inverses : (n + 1, n) float64
    ``weights[k, :k]``: diagonal minorant of the Gram matrix of the first k variables, and its inverse.
covariances : (depths, n, n) float64
    Entry k − ``first``: inverse Gram matrix of the first k variables, where ``steps[k] > 0``.
steps : (n + 1,) int64
    Hildreth steps at a node with k free variables.
levels : (levels, n) float64
    Sorted tables, padded with the last level.
count : (n,) int64
low, high : (n,) float64
    Smallest and largest level.
z, tilts : (n + 1, n) float64; psi, base, floor : (n + 1,) float64; moves : (n + 1,) int64
    Row k belongs to the node with k free variables; row n is given. ``base`` is the node's bound less the term
    of variable k − 1, ``floor`` a lower bound on Σ 2 h v of the free variables, ``moves`` the
    Hildreth steps on the path. State.
row : (n + 1,) int64
    Which row of ``tilts`` the node uses: its own or that of the last node above with steps. State.
sparse : (m,) int64
    Increasing indices of the root's tilted variables, if there are few; else any array longer than 8.
chosen, lower, upper : (n,) int64
    State.
position : (1,) int64
    The variable to be fixed next; n before the first call, n + 1 when the search is exhausted. State.
cut : (1,) float64
    Subtrees whose bound reaches it are pruned; lowered when a leaf below it is found. State.
best : (n,) int64
    Level indices of the best leaf found; best[0] = -1 while there is none. State.
nodes : (1,) int64
    Running count. State.
extreme : (2,) float64; reach : (n,) float64
    Largest Σ 2|h_i| max|level_i| of a node, largest number of moves on a path, and largest move of each variable
    from its centre, for the rounding allowance.
seen : (n + 1,) int64, or (0,); distance : (n + 1, n) float64
    Where given: per depth the number of nodes whose bound was near the cut, and the sums of their squared
    distances to the nearest level, from which better weights are learned.
active : (n + 1,) int64
    How many integer forms v_jᵀq (split cuts) are tested at each depth: leading columns of ``forms``.
forms : (n, cuts) float64
    Their coefficients.
form_moves : (n, cuts) float64
    ``shifts @ forms``.
form_units, form_inverses : (n + 1, n) float64; form_weights : (n + 1, cuts) float64
    Joint minorant diag(form_units) + V diag(form_weights) Vᵀ of every depth, and 1/form_units.
form_values : (n + 1, cuts) float64
    v_jᵀz over the free variables. State.
form_seen : (n + 1,) int64; form_distance : (n + 1, cuts) float64
    With ``seen``: the nodes tested, and the sums of their squared distances of v_jᵀz to the integers.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel


# Rows of matrices are taken within the functions that read them: a slice that crosses branches counts references.
# Reassociation only reorders sums whose rounding docs/numerics.md charges in any order.
@kernel(fastmath=REORDER, force_inline=True)
def _fix_plain(k, delta, z, shifts, low, high, weights):
    """Move the centre; separable bound on the integers low…high without tilts."""
    parent, child, shift, weight = z[k + 1], z[k], shifts[k], weights[k]
    total = 0.0
    for i in range(k):
        x = parent[i] + shift[i] * delta
        child[i] = x
        r = x - min(max(np.rint(x), low[i]), high[i])
        total += weight[i] * (r * r)
    return total


@kernel(fastmath=REORDER, force_inline=True)
def _fix_tilted(k, delta, own, z, shifts, tilts, low, high, weights, inverses):
    """Move the centre; separable bound on the integers low…high with tilts."""
    parent, child, shift, tilt, weight, inverse = z[k + 1], z[k], shifts[k], tilts[own], weights[k], inverses[k]
    total = 0.0
    for i in range(k):
        x = parent[i] + shift[i] * delta
        child[i] = x
        v = min(max(np.rint(x - tilt[i] * inverse[i]), low[i]), high[i])
        r = v - x
        total += 2.0 * tilt[i] * v + weight[i] * (r * r)
    return total


@kernel(fastmath=REORDER)
def _fix_table(k, delta, own, z, shifts, tilts, levels, weights):
    """Move the centre; separable bound on level tables of shape (levels, n)."""
    parent, child, shift, tilt, weight = z[k + 1], z[k], shifts[k], tilts[own], weights[k]
    for i in range(k):
        child[i] = parent[i] + shift[i] * delta
    total = 0.0
    for i in range(k):
        best = np.inf
        for j in range(levels.shape[0]):
            v = levels[j, i]
            r = v - child[i]
            best = min(best, 2.0 * tilt[i] * v + weight[i] * (r * r))
        total += best
    return total


@kernel(fastmath=REORDER, force_inline=True)
def _fix_forms(k, m, delta, fixed, values, moves, forms, weights):
    """Values of the integer forms at the moved centre; their part of the separable bound."""
    parent, child, move, row, weight = values[k + 1], values[k], moves[k], forms[k], weights[k]
    total = 0.0
    for j in range(m):
        y = parent[j] + move[j] * delta - row[j] * fixed
        child[j] = y
        r = y - np.rint(y)
        total += weight[j] * (r * r)
    return total


@kernel(fastmath=REORDER, force_inline=True)
def _unit_terms(k, own, z, tilts, low, high, weights, inverses):
    """Separable bound on the integers low…high with tilts."""
    centre, tilt, weight, inverse = z[k], tilts[own], weights[k], inverses[k]
    total = 0.0
    for i in range(k):
        x = centre[i]
        v = min(max(np.rint(x - tilt[i] * inverse[i]), low[i]), high[i])
        r = v - x
        total += 2.0 * tilt[i] * v + weight[i] * (r * r)
    return total


@kernel(fastmath=REORDER)
def _advance(k, amount, direction, z):
    for i in range(k):
        z[i] += amount * direction[i]


@kernel(force_inline=True)
def _term(i, x, tilt, weight, inverse, uniform, levels, low, high):
    """Min over the levels of 2 h v + d (v − x)² for one variable."""
    if uniform:
        v = min(max(np.rint(x - tilt * inverse), low), high)
        return 2.0 * tilt * v + weight * ((v - x) * (v - x))
    best = np.inf
    for j in range(levels.shape[0]):
        v = levels[j, i]
        best = min(best, 2.0 * tilt * v + weight * ((v - x) * (v - x)))
    return best


@kernel()
def _rest(k, z, tilt, weight, inverse, uniform, levels, low, high):
    total = 0.0
    for i in range(k):
        total += _term(i, z[i], tilt[i], weight[i], inverse[i], uniform, levels, low[i], high[i])
    return total


@kernel()
def ascend(k, steps, gain, psi, z, tilt, weight, covariance, low, high):
    """Greedy Hildreth steps on the tilts of the first k variables.

    Parameters
    ----------
    steps : int
        At most so many.
    gain : float
        Stop when no step promises more than this.
    covariance : (k, k) float64
        Inverse of the Gram matrix of the first k variables.

    Returns
    -------
    psi : float
    taken : int
    """
    taken = 0
    for _ in range(steps):
        best = gain
        pick = -1
        move = 0.0
        for i in range(k):
            x, t = z[i], tilt[i]
            if x < low[i] or t > 0.0:
                dt = max((low[i] - x) / covariance[i, i], -t)
            elif x > high[i] or t < 0.0:
                dt = min((high[i] - x) / covariance[i, i], -t)
            else:
                continue
            g = dt * dt * covariance[i, i]
            if t == 0.0:
                # A violated variable without a tilt already pays d·distance².
                violation = max(low[i] - x, x - high[i])
                g -= weight[i] * violation * violation
            if g > best:
                best, pick, move = g, i, dt
        if pick < 0:
            break
        psi -= move * (2.0 * z[pick] + covariance[pick, pick] * move)
        tilt[pick] += move
        _advance(k, move, covariance[pick], z)
        taken += 1
    return psi, taken


@kernel()
def _form_value(k, j, forms, z):
    total = 0.0
    for i in range(k):
        total += forms[i, j] * z[k, i]
    return total


@kernel(force_inline=True)
def _open_level(k, centre, levels, count, lower, upper):
    """Set the two pointers of variable k around its centre: the next level below, the next level above."""
    j = 0
    while j < count[k] and levels[j, k] < centre:
        j += 1
    lower[k] = j - 1
    upper[k] = j


@kernel(force_inline=True)
def _nearest_left(k, centre, levels, count, lower, upper):
    """The level of variable k that is nearest to its centre among those not tried yet; −1 where none is left."""
    below, above = lower[k], upper[k]
    if below >= 0 and (above >= count[k] or centre - levels[below, k] <= levels[above, k] - centre):
        lower[k] = below - 1
        return below
    if above < count[k]:
        upper[k] = above + 1
        return above
    return -1


@kernel(force_inline=True)
def _leave_side(k, pick, slope, count, lower, upper):
    """Give up the levels beyond a pruned one: on the far side of its parabola's vertex they are no better."""
    if slope >= 0.0 and pick == upper[k] - 1:
        upper[k] = count[k]
    if slope <= 0.0 and pick == lower[k] + 1:
        lower[k] = -1


@kernel(force_inline=True)
def _fix(k, delta, own, uniform, z, shifts, tilts, sparse, levels, low, high, weights, inverses):
    """Move the centre of the first k variables by ``delta``; the separable bound there with tilts of row ``own``."""
    n = shifts.shape[0]
    if not uniform:
        return _fix_table(k, delta, own, z, shifts, tilts, levels, weights)
    if own < n or sparse.shape[0] > 8:
        return _fix_tilted(k, delta, own, z, shifts, tilts, low, high, weights, inverses)
    rest = _fix_plain(k, delta, z, shifts, low, high, weights)
    for i in sparse:
        if i >= k:
            break
        rest += _term(i, z[k, i], tilts[n, i], weights[k, i], inverses[k, i], True, levels, low[i], high[i])
        rest -= _term(i, z[k, i], 0.0, weights[k, i], inverses[k, i], True, levels, low[i], high[i])
    return rest


@kernel()
def _note_levels(k, z, levels, seen, distance):
    """Note how far the first k variables are from their nearest levels."""
    seen[k] += 1
    for i in range(k):
        r = np.inf
        for j in range(levels.shape[0]):
            r = min(r, abs(levels[j, i] - z[k, i]))
        distance[k, i] += r * r


@kernel()
def _note_forms(k, m, values, seen, distance):
    """Note how far the first m forms are from the integers."""
    seen[k] += 1
    for j in range(m):
        r = values[k, j] - np.rint(values[k, j])
        distance[k, j] += r * r


@kernel()
def _improve(
    k, steps, own, partial, bound, cut, uniform, z, tilts, weights, inverses, covariance, levels, low, high, spare
):  # fmt: skip
    """Hildreth steps at a node: its bound, psi and the steps taken, 0 where the bound of row ``own`` is better."""
    child, tilt, weight, inverse = z[k], tilts[k], weights[k], inverses[k]
    for i in range(k):
        tilt[i] = tilts[own, i]
        spare[i] = child[i]
    trial, taken = ascend(k, steps, 1e-3 * cut, partial, spare, tilt, weight, covariance, low, high)
    if taken > 0:
        better = trial + _rest(k, spare, tilt, weight, inverse, uniform, levels, low, high)
        # The steps ascend the dual of the box alone: together with the grid they may lose.
        if better > bound:
            for i in range(k):
                child[i] = spare[i]
            return better, trial, taken
    return bound, partial, 0


@kernel()
def _box_terms(k, tilts, low, high):
    """The least Σ 2 h v of the first k variables, and the largest Σ 2|h v|."""
    least = 0.0
    size = 0.0
    for i in range(k):
        least += 2.0 * min(tilts[k, i] * low[i], tilts[k, i] * high[i])
        size += 2.0 * abs(tilts[k, i]) * max(abs(low[i]), abs(high[i]))
    return least, size


@kernel()
def enumerate_levels(
    max_nodes, collect, uniform, pivots, shifts, weights, inverses, covariances, first, steps, levels, count, low, high,
    z, tilts, row, sparse, psi, base, floor, moves, chosen, lower, upper, position, cut, best,
    nodes, extreme, reach, seen, distance, active, forms, form_moves, form_units, form_inverses, form_weights,
    form_values, form_seen, form_distance,
):  # fmt: skip
    """Continue the search until it is exhausted or ``max_nodes`` more nodes were generated.

    Parameters
    ----------
    max_nodes : int
    collect : bool
        Return at every leaf below the cut, and leave the cut as it is.
    uniform : bool
        Whether the levels of variable i are the integers from low[i] to high[i].
    pivots and all others
        The arrays that the module describes.

    Returns
    -------
    bool
        Whether the search is exhausted.
    """
    n = pivots.shape[0]
    k = position[0]
    if k == n + 1:
        return True
    if k == n:
        k = n - 1
        _open_level(k, z[n, k] - tilts[n, k] / pivots[k], levels, count, lower, upper)
    learn = seen.shape[0] > 0
    limit = nodes[0] + max_nodes
    done = False
    spare = np.empty(n)
    while nodes[0] < limit:
        x, t = z[k + 1, k], tilts[row[k + 1], k]
        pick = _nearest_left(k, x - t / pivots[k], levels, count, lower, upper)
        exhausted = pick < 0
        value = 0.0
        delta = 0.0
        partial = 0.0
        rest_floor = 0.0
        if not exhausted:
            nodes[0] += 1
            value = levels[pick, k]
            delta = value - x
            partial = psi[k + 1] + pivots[k] * (delta * delta) + 2.0 * t * value
            rest_floor = floor[k + 1] - min(2.0 * t * low[k], 2.0 * t * high[k])
            # Siblings come in order of their partial cost: none of the remaining ones can be cheaper.
            exhausted = not (partial + rest_floor < cut[0])
        if exhausted:
            k += 1
            if k == n:
                done = True
                break
            continue
        if k == 0:
            if not partial < cut[0]:
                continue
            chosen[0] = pick
            reach[0] = max(reach[0], abs(delta))
            for i in range(len(best)):
                best[i] = chosen[i]
            if collect:
                break
            cut[0] = partial
            continue
        slope = weights[k + 1, k]
        if base[k + 1] + 2.0 * t * value + slope * (delta * delta) >= cut[0]:
            _leave_side(k, pick, slope * delta + t, count, lower, upper)
            continue
        chosen[k] = pick
        # Before the tests that depend on it: what rounding may have hidden counts for pruned nodes as well.
        reach[k] = max(reach[k], abs(delta))
        own = row[k + 1]
        bound = partial + _fix(k, delta, own, uniform, z, shifts, tilts, sparse, levels, low, high, weights, inverses)
        if learn and bound < 1.5 * cut[0]:
            _note_levels(k, z, levels, seen, distance)
        if bound >= cut[0]:
            continue
        m = active[k]
        if m > 0:
            split = partial + _fix_forms(k, m, delta, z[k + 1, k], form_values, form_moves, forms, form_weights)
            if learn:
                _note_forms(k, m, form_values, form_seen, form_distance)
            split += _unit_terms(k, own, z, tilts, low, high, form_units, form_inverses)
            if split >= cut[0]:
                continue
        taken = 0
        if steps[k] > 0:
            bound, partial, taken = _improve(
                k, steps[k], own, partial, bound, cut[0], uniform, z, tilts, weights, inverses,
                covariances[k - first], levels, low, high, spare,
            )  # fmt: skip
            if taken > 0:
                own = k
                for j in range(m):
                    form_values[k, j] = _form_value(k, j, forms, z)
                rest_floor, size = _box_terms(k, tilts, low, high)
                extreme[0] = max(extreme[0], size)
                extreme[1] = max(extreme[1], float(moves[k + 1] + taken))
                if bound >= cut[0]:
                    continue
        psi[k] = partial
        moves[k] = moves[k + 1] + taken
        floor[k] = rest_floor
        row[k] = own
        k -= 1
        base[k + 1] = bound - _term(
            k, z[k + 1, k], tilts[own, k], weights[k + 1, k], inverses[k + 1, k], uniform, levels, low[k], high[k]
        )
        _open_level(k, z[k + 1, k] - tilts[own, k] / pivots[k], levels, count, lower, upper)
    position[0] = n + 1 if done else k
    return done
