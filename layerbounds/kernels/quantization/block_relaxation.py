"""Blocks of levels: closest points, the convex envelope's proximal step, and least costs with one level fixed.

Block g has the inputs ``member[first[g]:first[g + 1]]``; in their order ``block[g]`` is its matrix B_g, positive
definite, and ``factor[g]`` the upper triangular R with B_g = RᵀR, both padded. Row i of ``levels`` holds the
``count[i]`` sorted levels of input i. A point is a level of each of a block's inputs.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

#: Points that enter a corral in one exact proximal step; warm starts take one or two.
MOST_STEPS = 60
#: A point enters the corral only if it improves by this share of the distance.
IMPROVEMENT = 1e-10
#: Sweeps of coordinate descent over a block's box, and the relative move that ends them.
MOST_SWEEPS, SETTLED = 100, 1e-9
#: Squared relative distance from the corral's affine hull below which a point lies in it.
DEPENDENT = 1e-11


@kernel()
def settle(block, m, levels, inputs, count, anchor, slope, centre, tilt):
    """Real minimiser of (q − anchor)ᵀB(q − anchor) + 2 slopeᵀ(q − anchor) over the hull, and half its gradient there.

    Coordinate descent; where it ends early the search around its point is longer, but as exact.
    """
    for p in range(m):
        i = inputs[p]
        centre[p] = min(max(anchor[p], levels[i, 0]), levels[i, count[i] - 1])
    for p in range(m):
        s = slope[p]
        for q in range(m):
            s += block[p, q] * (centre[q] - anchor[q])
        tilt[p] = s
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for p in range(m):
            i = inputs[p]
            low = levels[i, 0]
            high = levels[i, count[i] - 1]
            new = min(max(centre[p] - tilt[p] / block[p, p], low), high)
            move = new - centre[p]
            if move != 0.0:
                centre[p] = new
                for q in range(m):
                    tilt[q] += block[q, p] * move
                largest = max(largest, abs(move) / (high - low) if high > low else 0.0)
        if largest < SETTLED:
            break


@kernel()
def closest(r, m, levels, inputs, count, centre, tilt, radius, most, best, index, work, where):
    """Depth-first search for the level point of least ‖R(q − c)‖² + Σ [2 t_i (q_i − c_i) − its least], t the tilt.

    All terms are nonnegative, and those of one input are convex in its level: siblings are visited on either side of
    the turning point until they reach the radius.

    Parameters
    ----------
    radius : float
        Only points below it are looked for.
    most : int
        Nodes that the search may take.
    best : ndarray of int64, shape (m,)
        Returns the level indices of the point found.
    index, work, where
        Scratch of shapes (m,), (6, m + 1) and (2, m).

    Returns
    -------
    value : float
        Least value, or ``radius`` where no point is below it; −1 after ``most`` nodes.
    nodes : int
    """
    step, middle, distance, floor, below, above = work[0], work[1], work[2], work[3], work[4], work[5]
    left, right = where[0], where[1]
    for p in range(m):
        i = inputs[p]
        end = levels[i, count[i] - 1]
        floor[p] = min(2.0 * tilt[p] * (levels[i, 0] - centre[p]), 2.0 * tilt[p] * (end - centre[p]))
    nodes = 0
    k = m - 1
    distance[m] = 0.0
    entering = True
    while True:
        i = inputs[k]
        if entering:
            # The centre given the levels above, where the cost is least, and the levels on either side of that.
            shift = 0.0
            for j in range(k + 1, m):
                shift += r[k, j] * step[j]
            pivot = r[k, k]
            middle[k] = centre[k] - shift / pivot
            turn = middle[k] - tilt[k] / (pivot * pivot)
            low = 0
            high = count[i]
            while low < high:
                half = (low + high) >> 1
                if levels[i, half] < turn:
                    low = half + 1
                else:
                    high = half
            left[k] = low - 1
            right[k] = low
            below[k] = term(r[k, k], levels[i, low - 1], middle[k], tilt[k], centre[k], floor[k]) if low > 0 else np.inf
            above[k] = (
                term(r[k, k], levels[i, low], middle[k], tilt[k], centre[k], floor[k]) if low < count[i] else np.inf
            )
        value = distance[k + 1] + min(below[k], above[k])
        if not value < radius:
            k += 1
            if k == m:
                return radius, nodes
            entering = False
            continue
        nodes += 1
        if nodes > most:
            return -1.0, nodes
        if below[k] <= above[k]:
            j = left[k]
            left[k] = j - 1
            below[k] = term(r[k, k], levels[i, j - 1], middle[k], tilt[k], centre[k], floor[k]) if j > 0 else np.inf
        else:
            j = right[k]
            right[k] = j + 1
            above[k] = (
                term(r[k, k], levels[i, j + 1], middle[k], tilt[k], centre[k], floor[k]) if j + 1 < count[i] else np.inf
            )
        index[k] = j
        if k == 0:
            radius = value
            for p in range(m):
                best[p] = index[p]
            # The siblings cost more.
            k = 1
            if k == m:
                return radius, nodes
            entering = False
            continue
        step[k] = levels[i, j] - centre[k]
        distance[k] = value
        k -= 1
        entering = True


@kernel()
def term(pivot, v, middle, tilt, centre, floor):
    """What one level adds."""
    step = pivot * (v - middle)
    return step * step + (2.0 * tilt * (v - centre) - floor)


@kernel()
def _cost(r, m, levels, inputs, count, indices, centre, tilt):
    """What `closest` minimises, at one point."""
    total = 0.0
    for p in range(m):
        i = inputs[p]
        t = 0.0
        for q in range(p, m):
            t += r[p, q] * (levels[inputs[q], indices[q]] - centre[q])
        ends = min(levels[i, 0] * tilt[p], levels[i, count[i] - 1] * tilt[p])
        total += t * t + 2.0 * (tilt[p] * levels[i, indices[p]] - ends)
    return total


@kernel()
def _solve(a, b, r):
    """Solve a positive definite system in place of b; False where a pivot is too small. Overwrites ``a``."""
    for k in range(r):
        pivot = a[k, k]
        if not pivot > 0.0:
            return False
        for i in range(k + 1, r):
            f = a[i, k] / pivot
            for j in range(k + 1, r):
                a[i, j] -= f * a[k, j]
            b[i] -= f * b[k]
    for k in range(r - 1, -1, -1):
        s = b[k]
        for j in range(k + 1, r):
            s -= a[k, j] * b[j]
        b[k] = s / a[k, k]
    return True


@kernel()
def _affine(point, size, m, goal, linear, a, b):
    """Weights b of points 1… of the corral that minimise ‖p(b) − goal‖² + linear over its affine hull."""
    for i in range(1, size):
        for j in range(1, i + 1):
            s = 0.0
            for p in range(m):
                s += (point[i, p] - point[0, p]) * (point[j, p] - point[0, p])
            a[i - 1, j - 1] = s
            a[j - 1, i - 1] = s
        s = 0.0
        for p in range(m):
            s += (point[i, p] - point[0, p]) * (goal[p] - point[0, p])
        b[i - 1] = s - 0.5 * (linear[i] - linear[0])
    return _solve(a, b, size - 1)


@kernel()
def _drop(k, size, m, indices, point, alpha, length):
    for q in range(k, size - 1):
        alpha[q] = alpha[q + 1]
        length[q] = length[q + 1]
        for p in range(m):
            indices[q, p] = indices[q + 1, p]
            point[q, p] = point[q + 1, p]


@kernel()
def _minimise(indices, point, alpha, length, size, m, goal, kappa, linear, a, b):
    """Minimise over the convex hull of the corral; points that lose their weight leave it. Returns its size."""
    while size > 1:
        for k in range(size):
            linear[k] = length[k] / kappa
        if not _affine(point, size, m, goal, linear, a, b):
            size -= 1
            total = 0.0
            for k in range(size):
                total += alpha[k]
            for k in range(size):
                alpha[k] = alpha[k] / total if total > 0.0 else 1.0 / size
            continue
        rest = 1.0
        for k in range(size - 1):
            rest -= b[k]
        step = 1.0
        out = -1
        for k in range(size):
            new = rest if k == 0 else b[k - 1]
            if new <= 0.0:
                t = alpha[k] / (alpha[k] - new) if alpha[k] > 0.0 else 0.0
                if out < 0 or t < step:
                    step = t
                    out = k
        for k in range(size):
            new = rest if k == 0 else b[k - 1]
            alpha[k] += step * (new - alpha[k])
        if out < 0:
            break
        _drop(out, size, m, indices, point, alpha, length)
        size -= 1
    if size == 1:
        alpha[0] = 1.0
    return size


@kernel()
def proximal_sweep(
    first, member, block, factor, levels, count, origin, kappa, over, z, y, u, corral, alpha, size, right, most, steps
):
    """One iteration of ADMM but for its linear system: y ← argmin Σ env_g(y) + κ_g‖R_g(y − v)‖², v = (relaxed z) + u.

    env_g is the convex envelope of (q − o)ᵀB_g(q − o) on the block's level points: the minimum of a convex combination
    of at most m + 1 points, the corral (Wolfe, Math. Programming 11, 1976), which is kept from one iteration to the
    next; ``closest`` finds the point that enters it.

    Parameters
    ----------
    first, member, block, factor, levels, count
        See the module.
    origin
        o; any choice changes the envelope by a linear function, which ``right`` below must match.
    kappa : ndarray of shape (groups,)
        Penalties κ_g.
    over : float
        Over-relaxation.
    z, y, u : ndarray of shape (n,)
        ADMM's variables; y and the scaled multiplier u are updated.
    corral : ndarray of int64, shape (groups, m + 2, m); alpha : (groups, m + 2); size : (groups,)
        Level indices, weights and number of points.
    right : ndarray of shape (n,)
        Returns κ_g B_g (y − u).
    most : int
        Nodes that one search may take.
    steps : int
        Points that may enter a corral: after `MOST_STEPS` the step is exact, without any it is that of the hull of the
        corral.

    Returns
    -------
    envelope : float
        Σ env_g(y).
    nodes : int
    """
    groups = len(size)
    widest = corral.shape[2]
    point = np.empty((widest + 2, widest))
    length = np.empty(widest + 2)
    linear = np.empty(widest + 2)
    a = np.empty((widest + 2, widest + 2))
    b = np.empty(widest + 2)
    goal = np.empty(widest)
    mean = np.empty(widest)
    target = np.empty(widest)
    centre = np.empty(widest)
    anchor = np.empty(widest)
    tilt = np.empty(widest)
    slope = np.zeros(widest)
    best = np.empty(widest, np.int64)
    index = np.empty(widest, np.int64)
    work = np.empty((6, widest + 1))
    where = np.empty((2, widest), np.int64)
    envelope = 0.0
    total = 0
    for g in range(groups):
        f0 = first[g]
        m = first[g + 1] - f0
        inputs = member[f0 : f0 + m]
        r = factor[g]
        weight = alpha[g]
        indices = corral[g]
        k = size[g]
        for p in range(m):
            i = inputs[p]
            target[p] = over * z[i] + (1.0 - over) * y[i] + u[i]
        for p in range(m):
            s = 0.0
            for q in range(p, m):
                s += r[p, q] * (target[q] - origin[inputs[q]])
            goal[p] = s
        for c in range(k):
            length[c] = _place(r, m, levels, inputs, origin, indices[c], point[c])
        for step in range(steps + 1):
            k = _minimise(indices, point, weight, length, k, m, goal, kappa[g], linear, a, b)
            for p in range(m):
                s = 0.0
                for c in range(k):
                    s += weight[c] * levels[inputs[p], indices[c, p]]
                mean[p] = s
                # Gradient: least of ‖R(q − o)‖² − 2κ(v − y)ᵀB(q − o).
                anchor[p] = origin[inputs[p]] + kappa[g] * (target[p] - s)
            if step == steps:
                break
            settle(block[g], m, levels, inputs, count, anchor, slope, centre, tilt)
            radius = np.inf
            for c in range(k):
                radius = min(radius, _cost(r, m, levels, inputs, count, indices[c], centre, tilt))
            limit = radius * (1.0 - IMPROVEMENT)
            value, nodes = closest(r, m, levels, inputs, count, centre, tilt, limit, most, best, index, work, where)
            total += nodes
            # Not a number where single precision has overflowed before.
            if not 0.0 <= value < limit:
                break
            k = _enter_corral(r, m, levels, inputs, origin, best, indices, point, weight, length, k, linear, a, b)
        size[g] = k
        for p in range(m):
            i = inputs[p]
            y[i] = mean[p]
            u[i] = target[p] - mean[p]
        for c in range(k):
            envelope += weight[c] * length[c]
        for p in range(m):
            s = 0.0
            for q in range(p, m):
                s += r[p, q] * (y[inputs[q]] - u[inputs[q]])
            goal[p] = s
        for p in range(m):
            s = 0.0
            for q in range(p + 1):
                s += r[q, p] * goal[q]
            right[inputs[p]] = kappa[g] * s
    return envelope, total


@kernel()
def _place(r, m, levels, inputs, origin, indices, point):
    """Coordinates R(q − o) of a level point; returns their square length."""
    total = 0.0
    for p in range(m):
        s = 0.0
        for q in range(p, m):
            s += r[p, q] * (levels[inputs[q], indices[q]] - origin[inputs[q]])
        point[p] = s
        total += s * s
    return total


@kernel()
def _enter_corral(r, m, levels, inputs, origin, best, indices, point, weight, length, size, linear, a, b):
    """Add a point; where it lies in the corral's affine hull, it replaces the point whose weight vanishes first."""
    new = point[size]
    length_new = _place(r, m, levels, inputs, origin, best, new)
    far = 0.0
    for p in range(m):
        far += (new[p] - point[0, p]) ** 2
    for c in range(size):
        linear[c] = 0.0
    dependent = size > m
    solved = _affine(point, size, m, new, linear, a, b)
    if solved and not dependent:
        rest = 0.0
        for p in range(m):
            s = new[p] - point[0, p]
            for c in range(1, size):
                s -= b[c - 1] * (point[c, p] - point[0, p])
            rest += s * s
        dependent = rest <= DEPENDENT * far
    elif not solved:
        dependent = size > m
        for c in range(size):
            b[c] = 0.0
    if dependent:
        share = 1.0
        for c in range(1, size):
            share -= b[c - 1]
        step = np.inf
        out = 0
        for c in range(size):
            s = share if c == 0 else b[c - 1]
            if s > 1e-12 and weight[c] < step * s:
                step = weight[c] / s
                out = c
        for c in range(size):
            s = share if c == 0 else b[c - 1]
            weight[c] = max(weight[c] - step * s, 0.0)
        weight[size] = step
        length[size] = length_new
        for p in range(m):
            indices[size, p] = best[p]
        _drop(out, size + 1, m, indices, point, weight, length)
        return size
    weight[size] = 0.0
    length[size] = length_new
    for p in range(m):
        indices[size, p] = best[p]
    return size + 1


@kernel()
def least_costs(first, member, block, factor, levels, count, z, h, most, budget, centre, tilt, least):
    """Per block the least of (q − z)ᵀB(q − z) + 2hᵀ(q − z) over its level points, by `closest` around `settle`'s point.

    ``least`` returns `closest`'s value, NaN where it took more than ``most`` nodes or all took more than ``budget``;
    ``centre`` and ``tilt`` what `settle` found. Returns the number of nodes.
    """
    widest = factor.shape[1]
    best = np.empty(widest, np.int64)
    index = np.empty(widest, np.int64)
    work = np.empty((6, widest + 1))
    where = np.empty((2, widest), np.int64)
    anchor = np.empty(widest)
    slope = np.empty(widest)
    middle = np.empty(widest)
    side = np.empty(widest)
    total = 0
    for g in range(len(first) - 1):
        f0 = first[g]
        m = first[g + 1] - f0
        inputs = member[f0 : f0 + m]
        for p in range(m):
            anchor[p] = z[inputs[p]]
            slope[p] = h[inputs[p]]
        settle(block[g], m, levels, inputs, count, anchor, slope, middle, side)
        for p in range(m):
            centre[inputs[p]] = middle[p]
            tilt[inputs[p]] = side[p]
        value, nodes = closest(
            factor[g],
            m,
            levels,
            inputs,
            count,
            middle,
            side,
            np.inf,
            min(most, budget - total),
            best,
            index,
            work,
            where,
        )
        total += nodes
        least[g] = value if value >= 0.0 else np.nan
    return total


@kernel()
def fixed_costs(first, member, place, block, factor, levels, count, z, h, most, budget, costs):
    """Least of (q − z)ᵀB(q − z) + 2hᵀ(q − z) of a block with one input at one level, for every input and level.

    ``place[i]`` is the order of the members of input i's block with i last; ``block[i]`` and ``factor[i]`` follow it.
    NaN as above.
    """
    widest = factor.shape[1]
    local_levels = np.empty((widest, levels.shape[1]))
    local_count = np.empty(widest, np.int64)
    inputs = np.arange(widest)
    best = np.empty(widest, np.int64)
    index = np.empty(widest, np.int64)
    work = np.empty((6, widest + 1))
    where = np.empty((2, widest), np.int64)
    anchor = np.empty(widest)
    slope = np.empty(widest)
    middle = np.empty(widest)
    side = np.empty(widest)
    total = 0
    for g in range(len(first) - 1):
        f0 = first[g]
        m = first[g + 1] - f0
        for s in range(f0, f0 + m):
            i = member[s]
            for p in range(m):
                other = member[f0 + place[i, p]]
                anchor[p] = z[other]
                slope[p] = h[other]
                local_count[p] = count[other]
                for j in range(levels.shape[1]):
                    local_levels[p, j] = levels[other, j]
            local_count[m - 1] = 1
            for j in range(count[i]):
                local_levels[m - 1, 0] = levels[i, j]
                settle(block[i], m, local_levels, inputs, local_count, anchor, slope, middle, side)
                value, nodes = closest(
                    factor[i], m, local_levels, inputs, local_count, middle, side, np.inf, min(most, budget - total),
                    best, index, work, where,
                )  # fmt: skip
                total += nodes
                # (c − z)ᵀB(c − z) + 2hᵀ(c − z) with B(c − z) = t − h, and the least of the tilts' terms.
                offset = 0.0
                for p in range(m):
                    low, high = local_levels[p, 0] - middle[p], local_levels[p, local_count[p] - 1] - middle[p]
                    offset += (middle[p] - anchor[p]) * (side[p] + slope[p]) + 2.0 * min(side[p] * low, side[p] * high)
                costs[i, j] = value + offset if value >= 0.0 else np.nan
            for j in range(count[i], levels.shape[1]):
                costs[i, j] = costs[i, count[i] - 1]
    return total
