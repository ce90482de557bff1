"""Work on a node of a joint problem: relaxation, a better minorant, reduced costs, and where to branch.

Arguments are those of `layerbounds.kernels.joint.relaxed_node`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.joint.relaxed_bound import bound_at, round_point, tighten
from layerbounds.kernels.joint.relaxed_node import count_undecided, make_costs, settle, undecided
from layerbounds.kernels.joint.smoothing import ascend_smoothed, spread
from layerbounds.kernels.linear_algebra import copy, factorize, invert_factor
from layerbounds.kernels.pruning.subset_diagonal import ascend, prove

#: Share of the mean that every emphasis has at least, and the barrier weight of one improvement.
FLOOR, TREE_MU = 0.03, 0.3
#: Classes of costs when points are counted.
BINS = 64
#: Rounds of relaxation and fixing at a node, Newton steps of the first one and of the others, and the smoothing in
#: units of the gap divided by the root of the number of inputs.
ROUNDS, STEPS, MORE_STEPS, SMOOTH = 4, 4, 2, 0.03


@kernel(error_model="numpy")
def improve(layer, shifted, node, d, mu, mean, var, share, tuned, work, inverse):
    """A sweep of coordinate ascent on the minorant of the undecided inputs, into ``tuned``; False where it fails."""
    _, _, _, _, _, zero, unit, _, _, _ = layer
    first, last, zero_ok, status, _ = node
    n = len(unit)
    index = np.empty(n, np.int64)
    m = 0
    total = 0.0
    alpha, entry = np.empty(n), np.empty(n)
    copy(d, tuned)
    for i in range(n):
        if undecided(zero, first, last, zero_ok, i):
            if not d[i] > 0.0:
                return False
            _, variance, _ = spread(unit, status, share, mean, var, i)
            index[m] = i
            alpha[m] = d[i] * variance
            entry[m] = d[i]
            total += alpha[m]
            m += 1
    if m == 0 or not total > 0.0:
        return False
    for p in range(m):
        row, line = shifted[index[p]], work[p]
        for q in range(p, m):
            line[q] = row[index[q]]
        line[p] -= entry[p]
        alpha[p] += FLOOR * total / m
    if not factorize(work, m, m):
        return False
    invert_factor(work, m, inverse)
    ascend(inverse, alpha[:m], mu * total / m, entry[:m])
    for p in range(m):
        if not entry[p] > 0.0:
            return False
    for shrink in (1.0, 0.97, 0.8):
        for p in range(m):
            tuned[index[p]] = shrink * entry[p]
        if prove(shifted, tuned, index, m, 0, work):
            return True
    return False


@kernel(error_model="numpy", nested=True)
def pick(layer, node, pivot, mean, var, share):
    """The undecided input of largest variance in units of its pivot; half of that where only levels are open."""
    _, _, _, _, _, zero, unit, _, _, _ = layer
    first, last, zero_ok, status, _ = node
    best, arg = -1.0, -1
    for i in range(len(unit)):
        if undecided(zero, first, last, zero_ok, i):
            _, variance, _ = spread(unit, status, share, mean, var, i)
            score = variance * pivot[i] * (1.0 if status[unit[i]] == 0 else 0.5)
            if score > best:
                best = score
                arg = i
    return arg


@kernel(error_model="numpy", nested=True)
def add_choice(cost, width, counts, sums):
    """Add up in ``sums`` the counts of what is there already, moved by a cost."""
    shift = int(cost / width) if cost < width * len(counts) else len(counts)
    for b in range(len(counts) - shift):
        sums[b + shift] += counts[b]


@kernel(error_model="numpy", nested=True)
def count_points(layer, node, d, x, costs, price, gap):
    """About how many choices of all inputs have costs that add up to less than the gap, capacities priced."""
    _, _, _, _, values, zero, unit, group, _, _ = layer
    first, last, zero_ok, status, _ = node
    h, drop, own = costs[1], costs[2], costs[3]
    counts, sums = np.zeros(BINS), np.empty(BINS)
    counts[0] = 1.0
    width = gap / BINS
    for i in range(len(unit)):
        if not undecided(zero, first, last, zero_ok, i):
            continue
        paid = price[group[unit[i]]] if status[unit[i]] == 0 else 0.0
        least = own[i] + paid
        if zero_ok[i]:
            least = min(least, drop[i])
        for b in range(BINS):
            sums[b] = 0.0
        for k in range(first[i], last[i] + 1):
            if k != zero[i]:
                t = values[i, k] - x[i]
                add_choice(t * (2.0 * h[i] + d[i] * t) + paid - least, width, counts, sums)
        if zero_ok[i]:
            add_choice(drop[i] - least, width, counts, sums)
        copy(sums, counts)
    total = 0.0
    for b in range(BINS):
        total += counts[b]
    return total


@kernel(error_model="numpy")
def expand(layer, shifted, node, d, tuned, x, price, pivot, bound, cut, better, found):
    """Bound a node, drop what reaches the cut, and say where to branch.

    Parameters
    ----------
    layer, node
        See the module. The node's lists shrink.
    shifted
        The matrix below which minorants are proven: the Gram matrix plus ``shift`` on its diagonal.
    d, tuned
        The node's minorant, and a better one.
    x, price
        Where the relaxation starts and ends.
    pivot
        By which variances are multiplied when inputs are compared for branching.
    bound, cut
        A bound that is known, and the one that ends the work.
    better
        Whether to improve the minorant.
    found
        Result: the point that rounds the relaxation.

    Returns
    -------
    tuple
        A proven bound; the input to branch on, −1 where the node is closed and −2 where all inputs are decided; whether
        something was dropped for reaching the cut; whether ``tuned`` is the better minorant; about how many points
        are left.
    """
    n, units, groups = len(x), len(layer[7]), len(layer[9]) - 1
    costs = make_costs(n, units, groups)
    mean, var, share, work = np.empty(n), np.empty(n), np.empty(units), np.empty((n, n))
    excluded, changed = False, False
    use = d
    points = 0.0
    if not settle(layer, node, x):
        return np.inf, -1, False, False, points
    value = bound
    for turn in range(ROUNDS):
        m = count_undecided(layer, node)
        if m == 0:
            return value, -2, excluded, changed, points
        gap = max(cut - value, 1e-3 * cut)
        tau = SMOOTH * gap / np.sqrt(m)
        steps = STEPS if turn == 0 else MORE_STEPS
        ascend_smoothed(
            layer, node, use, x, costs, tau, steps, value, 0.01 * gap, cut, price, mean, var, share, work
        )  # fmt: skip
        now = bound_at(layer, node, use, x, costs)
        value = max(value, now)
        if value >= cut:
            return value, -1, excluded, changed, points
        if turn == 0 and better:
            inverse = np.empty((n, n))
            if improve(layer, shifted, node, use, TREE_MU, mean, var, share, tuned, work, inverse):
                ascend_smoothed(
                    layer, node, tuned, x, costs, tau, MORE_STEPS, value, 0.01 * gap, cut, price, mean, var, share, work
                )
                after = bound_at(layer, node, tuned, x, costs)
                if after > now:
                    changed = True
                    use = tuned
                    now = after
                    value = max(value, now)
                    if value >= cut:
                        return value, -1, excluded, changed, points
                else:
                    now = bound_at(layer, node, use, x, costs)
        if turn == 0:
            round_point(layer, node, costs, found)
        points = count_points(layer, node, use, x, costs, price, cut - now)
        if tighten(layer, node, use, x, costs, now, cut) == 0:
            break
        excluded = True
        before = m
        if not settle(layer, node, x):
            return cut, -1, excluded, changed, points
        if count_undecided(layer, node) == before:
            break
    if count_undecided(layer, node) == 0:
        return value, -2, excluded, changed, points
    return value, pick(layer, node, pivot, mean, var, share), excluded, changed, points
