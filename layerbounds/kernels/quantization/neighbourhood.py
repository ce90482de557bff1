"""Large-neighbourhood search: exact enumeration over random subsets of the variables, the others fixed."""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel
from layerbounds.kernels.linear_algebra import invert_by_sweeps, select


@kernel()
def _pick_random(n, size, scratch, subset):
    for i in range(n):
        scratch[i] = i
    for i in range(size):
        j = i + np.random.randint(n - i)
        scratch[i], scratch[j] = scratch[j], scratch[i]
        subset[i] = scratch[i]


@kernel()
def _pick_related(n, size, relation, score, scratch, subset):
    """A random variable and those most related to it, with noise so that repeats differ."""
    seed = np.random.randint(n)
    for i in range(n):
        score[i] = -abs(relation[seed, i]) * (0.25 + np.random.random())
    score[seed] = -np.inf
    for i in range(n):
        scratch[i] = score[i]
    select(scratch, n, size - 1)
    # Those below the threshold, then as many others as there is room for: all at it, as long as no score is NaN.
    threshold = scratch[size - 1]
    count = 0
    for i in range(n):
        if score[i] < threshold:
            subset[count] = i
            count += 1
    for i in range(n):
        if not score[i] < threshold and count < size:
            subset[count] = i
            count += 1


@kernel()
def _arrange(m, inverse, order, pivots, shifts):
    """V-BLAST order: fix first (position m − 1) the variable of the largest conditional pivot.

    False where rounding has left a conditional variance that is not positive: the block is nearly singular.
    """
    for i in range(m):
        order[i] = i
    for k in range(m - 1, -1, -1):
        best = k
        for i in range(k):
            if inverse[order[i], order[i]] < inverse[order[best], order[best]]:
                best = i
        order[k], order[best] = order[best], order[k]
        v = order[k]
        p = inverse[v, v]
        if not p > 0.0:
            return False
        pivots[k] = 1.0 / p
        for i in range(m):
            shifts[k, i] = inverse[i, v] / p
        for i in range(k):
            a = order[i]
            f = inverse[a, v] / p
            for j in range(k):
                b = order[j]
                inverse[a, b] -= f * inverse[v, b]
    return True


@kernel()
def _enumerate(m, budget, cut, pivots, shifts, levels, count, centres, cost, chosen, lower, upper, best):
    """Depth-first Schnorr–Euchner below a cut; returns (value, found, nodes)."""
    found = False
    nodes = 0
    k = m - 1
    c = centres[m, k]
    j = 0
    while j < count[k] and levels[k, j] < c:
        j += 1
    lower[k], upper[k] = j - 1, j
    cost[m] = 0.0
    while nodes < budget:
        c = centres[k + 1, k]
        below, above = lower[k], upper[k]
        pick = -1
        if below >= 0 and (above >= count[k] or c - levels[k, below] <= levels[k, above] - c):
            pick = below
            lower[k] = below - 1
        elif above < count[k]:
            pick = above
            upper[k] = above + 1
        up = pick < 0
        if not up:
            nodes += 1
            delta = levels[k, pick] - c
            partial = cost[k + 1] + pivots[k] * delta * delta
            up = not (partial < cut)
        if up:
            k += 1
            if k == m:
                break
            continue
        chosen[k] = pick
        if k == 0:
            cut = partial
            found = True
            for i in range(m):
                best[i] = chosen[i]
            continue
        cost[k] = partial
        for i in range(k):
            centres[k, i] = centres[k + 1, i] + shifts[k, i] * delta
        k -= 1
        c = centres[k + 1, k]
        j = 0
        while j < count[k] and levels[k, j] < c:
            j += 1
        lower[k], upper[k] = j - 1, j
    return cut, found, nodes


@kernel()
def search_neighbourhoods(gram, target, relation, levels, count, choice, size, rounds, budget, seed):
    """Improve a choice in place by exact enumeration over subsets.

    Parameters
    ----------
    gram : (n, n) float64
    target : (n,) float64
    relation : (n, n) float64
        How much two variables interact; half of the subsets gather related ones.
    levels : (n, levels) float64
    count, choice : (n,) int64
    size : (1,) float64
        Subset size; adapted so that most enumerations end within the budget. State.
    rounds, budget : int
        Subsets, and nodes for each.
    seed : int

    Returns
    -------
    value : float
        (q − w)ᵀH(q − w) of the final choice.
    improvements : int
    """
    np.random.seed(seed)
    n = target.shape[0]
    most = min(n, 96)
    deviation = np.empty(n)
    for i in range(n):
        deviation[i] = levels[i, choice[i]] - target[i]
    gradient = gram @ deviation
    subset = np.empty(most, np.int64)
    scratch = np.empty(n, np.int64)
    score, ordered = np.empty(n), np.empty(n)
    inverse = np.empty((most, most))
    order = np.empty(most, np.int64)
    pivots = np.empty(most)
    directions = np.empty((most, most))
    shifts = np.empty((most, most))
    tables = np.empty((most, levels.shape[1]))
    counts = np.empty(most, np.int64)
    centres = np.empty((most + 1, most))
    cost = np.empty(most + 1)
    chosen = np.empty(most, np.int64)
    lower = np.empty(most, np.int64)
    upper = np.empty(most, np.int64)
    best = np.empty(most, np.int64)
    improvements = 0
    for _ in range(rounds):
        m = min(most, max(2, int(size[0])))
        if m >= n:
            m = n
            for i in range(n):
                subset[i] = i
        elif np.random.random() < 0.5:
            _pick_random(n, m, scratch, subset)
        else:
            _pick_related(n, m, relation, score, ordered, subset)
        for i in range(m):
            for j in range(m):
                inverse[i, j] = gram[subset[i], subset[j]]
        if not invert_by_sweeps(inverse, m):
            continue
        # The centre of the subset given the others: q_F − H_FF⁻¹ g_F; the present choice costs g_Fᵀ H_FF⁻¹ g_F.
        present = 0.0
        for i in range(m):
            s = 0.0
            for j in range(m):
                s += inverse[i, j] * gradient[subset[j]]
            score[i] = levels[subset[i], choice[subset[i]]] - s
            present += s * gradient[subset[i]]
        if not _arrange(m, inverse, order, pivots, directions):
            continue
        for k in range(m):
            v = order[k]
            centres[m, k] = score[v]
            counts[k] = count[subset[v]]
            for j in range(counts[k]):
                tables[k, j] = levels[subset[v], j]
            for i in range(k):
                shifts[k, i] = directions[k, order[i]]
        _, found, nodes = _enumerate(
            m,
            budget,
            present * (1.0 - 1e-12),
            pivots,
            shifts,
            tables,
            counts,
            centres,
            cost,
            chosen,
            lower,
            upper,
            best,
        )
        if nodes >= budget:
            size[0] = max(4.0, size[0] - 0.5)
        elif nodes < budget // 8:
            size[0] = min(float(most), size[0] + 0.1)
        if found:
            improvements += 1
            for k in range(m):
                i = subset[order[k]]
                t = levels[i, best[k]] - levels[i, choice[i]]
                if t != 0.0:
                    choice[i] = best[k]
                    for j in range(n):
                        gradient[j] += gram[i, j] * t
    for i in range(n):
        deviation[i] = levels[i, choice[i]] - target[i]
    return np.dot(deviation, gram @ deviation), improvements
