"""Depth-first enumeration of supports and levels on tilted centres, with a separable bound at every depth.

Inputs are fixed from the last to the first of the prepared order; a weight is zero or one of its levels, and at most so
many free inputs of a group may be other than zero. With h the gradient at the root's point and z the centre of the
first k inputs once the others are fixed (kernels/quantization/enumeration.py; docs/joint-bounds.md),

    f(v) ≥ psi + Σ_i min_{v in the list} [2 h_i v + d_i (v − z_i)²],

where v = 0 costs d_i z_i² and a level saves −s_i = −v (d_i (v − 2 z_i) + 2 h_i) against it. With one group the largest
savings are chosen by a price λ of the capacity, Σ min(0, s_i + λ) − λ·room, valid for every λ ≥ 0 and adapted at every
depth; with several groups they are chosen exactly. All in units of each input's grid, so that levels of uniform grids
are integers, or integers plus an offset, and the nearest one is a rounding.

Arrays
------
pivots, doubled : (m,) float64
    Squared pivots p_k, and 2 h_k.
shifts : (m, m) float64
    ``shifts[k, :k]``: move of the centre of the first k inputs for a unit move of input k.
weights, slack : (m + 1, m) float64
    ``weights[k, :k]``: diagonal minorant of the Gram matrix of the first k inputs; slack = h/d, z − slack the vertex.
offset, low, high : (m,) float64
    Levels are offset plus integers, from low to high.
levels : (m, longest) float64; count : (m,) int64
    Sorted levels other than zero.
free : (m,) float64; ceiling : (m,) float64
    1 and 0 where a weight may be zero; 0 and infinity where it is kept.
below : (m + 1,) int64
    How many of the first k inputs may be zero.
group : (m,) int64; member : (groups, widest) int64; most_room : int
    Group of each input; those that may be zero by group, ascending, padded with m; the largest capacity. Groups are in
    the order of their first inputs that may be zero.
z : (m + 1, m) float64; psi, zero_base, kept_base : (m + 1,) float64
    Row k belongs to the node with k free inputs; row m is given. The bases are the node's bound without the own terms
    of input k − 1, if that is zero and if it is kept. State.
price : (m + 1,) float64; price_range : (2,) float64
    Of the capacity, by depth: adapted within the range. State.
room : (m + 1,) int64, or left : (groups,) int64
    What the capacities still allow. State.
chosen : (m,) float64; lower, upper : (m,) int64; zero_left : (m,) bool
    State.
position : (1,) int64
    The input to be fixed next; m before the first call, m + 1 when the search is exhausted. State.
cut : (1,) float64
    Subtrees whose bound reaches it are pruned; lowered when a leaf below it is found. State.
best : (m,) float64; found, nodes : (1,) int64
    Best leaf, the number of leaves below the cut, running count of nodes. State.
reach : (m,) float64
    Largest move of each input from its centre, for the rounding allowance. State.
saved : (m + 1,) float64; top : (m,) float64
    Space; the last entry of ``saved`` is zero.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel

#: A price at which nothing is kept.
NEVER = 1e300


# Reassociation only reorders sums whose rounding docs/numerics.md charges in any order. Selections are written out, and
# sums apart from stores, so that the loops are vectorized.
@kernel(fastmath=REORDER, force_inline=True, error_model="numpy")
def _move(k, delta, z, shifts):
    """Move the centre of the first k inputs."""
    parent, child, shift = z[k + 1], z[k], shifts[k]
    for i in range(k):
        child[i] = parent[i] + shift[i] * delta


@kernel(fastmath=REORDER, force_inline=True, error_model="numpy")
def _grid_saving(x, weight, away, doubled, offset, low, high):
    """What the best level costs beyond zero, on a uniform grid."""
    y = x - away
    v = np.rint(y - offset) + offset
    one = np.copysign(1.0, y)
    v = one if v == 0.0 else v
    v = v if v > low else low
    v = v if v < high else high
    return v * (weight * (v - 2.0 * x) + doubled)


@kernel(fastmath=REORDER, force_inline=True, error_model="numpy")
def _price_grid(k, cost, z, weights, slack, doubled, offset, low, high, free, ceiling):
    """The sum of the terms of the first k inputs at a price, and how many are kept for it."""
    centre, weight, away = z[k], weights[k], slack[k]
    total = 0.0
    kept = 0.0
    for i in range(k):
        x = centre[i]
        s = _grid_saving(x, weight[i], away[i], doubled[i], offset[i], low[i], high[i]) + cost * free[i]
        most = ceiling[i]
        total += weight[i] * (x * x) + (s if s < most else most)
        one = free[i]
        kept += one if s < 0.0 else 0.0
    return total, kept


@kernel(fastmath=REORDER, force_inline=True, error_model="numpy")
def _list_grid(k, z, weights, slack, doubled, offset, low, high, free, saved):
    """What keeping each of the first k inputs costs beyond zero; the sum of the terms, zero wherever it is allowed."""
    centre, weight, away = z[k], weights[k], slack[k]
    for i in range(k):
        saved[i] = _grid_saving(centre[i], weight[i], away[i], doubled[i], offset[i], low[i], high[i])
    total = 0.0
    for i in range(k):
        x = centre[i]
        total += weight[i] * (x * x) + (1.0 - free[i]) * saved[i]
    return total


@kernel(error_model="numpy")
def _table_saving(i, x, weight, doubled, levels, count):
    """What the best level of a table costs beyond zero."""
    s = np.inf
    for j in range(count[i]):
        v = levels[i, j]
        s = min(s, v * (weight * (v - 2.0 * x) + doubled))
    return s


@kernel(error_model="numpy")
def _price_table(k, cost, z, weights, doubled, levels, count, free, ceiling):
    """As `_price_grid`, with tables of levels."""
    centre, weight = z[k], weights[k]
    total = 0.0
    kept = 0.0
    for i in range(k):
        x = centre[i]
        s = _table_saving(i, x, weight[i], doubled[i], levels, count) + cost * free[i]
        total += weight[i] * (x * x) + min(ceiling[i], s)
        kept += free[i] if s < 0.0 else 0.0
    return total, kept


@kernel(error_model="numpy")
def _list_table(k, z, weights, doubled, levels, count, free, saved):
    """As `_list_grid`, with tables of levels."""
    centre, weight = z[k], weights[k]
    total = 0.0
    for i in range(k):
        x = centre[i]
        saved[i] = _table_saving(i, x, weight[i], doubled[i], levels, count)
        total += weight[i] * (x * x)
        if free[i] == 0.0:
            total += saved[i]
    return total


@kernel(error_model="numpy", force_inline=True)
def _two_savings(g, k, room, member, saved):
    """Sum of the two largest savings of a group's members among the first k inputs, or of one, or none.

    Without branches, as savings are in no order.
    """
    first = 0.0
    second = 0.0
    for p in range(member.shape[1]):
        i = member[g, p]
        s = -saved[i]
        s = s if i < k else 0.0
        lower = s if s < first else first
        second = lower if lower > second else second
        first = s if s > first else first
    first = first if room > 0 else 0.0
    second = second if room > 1 else 0.0
    return first + second


@kernel(error_model="numpy")
def _largest_savings(g, k, room, member, saved, top):
    """Sum of the largest savings of a group's members among the first k inputs, at most ``room`` of them."""
    total = 0.0
    size = 0
    for p in range(member.shape[1]):
        i = member[g, p]
        if i >= k or room <= 0:
            break
        s = -saved[i]
        if not s > 0.0:
            continue
        at = size
        if size < room:
            size += 1
        elif s <= top[size - 1]:
            continue
        else:
            at = size - 1
        while at > 0 and top[at - 1] < s:
            top[at] = top[at - 1]
            at -= 1
        top[at] = s
    for p in range(size):
        total += top[p]
    return total


@kernel(error_model="numpy", force_inline=True)
def _group_savings(g, k, room, most, member, saved, top):
    """Either of them: ``most`` is the largest capacity."""
    if most <= 2:
        return _two_savings(g, k, room, member, saved)
    return _largest_savings(g, k, room, member, saved, top)


@kernel(error_model="numpy", force_inline=True)
def _open_input(k, vertex, levels, count, free, lower, upper, zero_left):
    """Set the pointers of input k around the vertex of its parabola: the next level below, the next level above."""
    many = count[k]
    # Near where it is on a grid with unit steps.
    guess = min(max(vertex - levels[k, 0], 0.0), 1.0 * many)
    j = int(guess)
    while j > 0 and levels[k, j - 1] >= vertex:
        j -= 1
    while j < many and levels[k, j] < vertex:
        j += 1
    lower[k] = j - 1
    upper[k] = j
    zero_left[k] = free[k] > 0.0


@kernel(error_model="numpy", force_inline=True)
def _nearest_left(k, vertex, levels, count, lower, upper):
    """The level of input k that is nearest to the vertex among those not tried yet; −1 where none is left."""
    under, over = lower[k], upper[k]
    if under >= 0 and (over >= count[k] or vertex - levels[k, under] <= levels[k, over] - vertex):
        return under
    return over if over < count[k] else -1


@kernel(error_model="numpy", force_inline=True)
def _take(k, pick, lower, upper, zero_left):
    """Input k takes its choice of least bound: what is left of it."""
    if pick < 0:
        zero_left[k] = False
    elif pick == lower[k]:
        lower[k] = pick - 1
    else:
        upper[k] = pick + 1


@kernel(error_model="numpy", force_inline=True)
def _bound_by_groups(
    k, tables, z, weights, slack, doubled, offset, low, high, levels, count, free, member, most_room, left, saved, top
):  # fmt: skip
    """The separable bound of the first k inputs with several capacities, less psi."""
    if tables:
        rest = _list_table(k, z, weights, doubled, levels, count, free, saved)
    else:
        rest = _list_grid(k, z, weights, slack, doubled, offset, low, high, free, saved)
    for g in range(len(left)):
        if member[g, 0] >= k:
            break
        rest -= _group_savings(g, k, left[g], most_room, member, saved, top)
    return rest


@kernel(error_model="numpy", force_inline=True)
def _set_group_bases(k, base, group, member, most_room, left, saved, top, zero_base, kept_base):
    """The bound without the own terms of input k, its group's capacity shared among the others."""
    g = group[k]
    base += _group_savings(g, k + 1, left[g], most_room, member, saved, top)
    zero_base[k + 1] = base - _group_savings(g, k, left[g], most_room, member, saved, top)
    kept_base[k + 1] = base - _group_savings(g, k, left[g] - 1, most_room, member, saved, top)


@kernel(error_model="numpy")
def enumerate_kept(
    max_nodes, collect, tables, pivots, doubled, shifts, weights, slack, offset, low, high, levels, count, free,
    ceiling, below, group, member, most_room, z, psi, zero_base, kept_base, price, price_range, room, left, chosen,
    lower, upper, zero_left, position, cut, best, found, nodes, reach, saved, top,
):  # fmt: skip
    """Continue the search until it is exhausted or ``max_nodes`` more nodes were generated; returns whether it is.

    With ``collect`` it returns at every leaf below the cut and leaves the cut as it is. ``tables`` says that levels are
    only those of the tables, not offsets plus integers. The other arrays are those that the module describes.
    """
    m = pivots.shape[0]
    k = position[0]
    if k == m + 1:
        return True
    single = left.shape[0] <= 1
    if k == m:
        k = m - 1
        _open_input(k, z[m, k] - slack[m, k], levels, count, free, lower, upper, zero_left)
    made = 0
    limit = cut[0]
    done = False
    while made < max_nodes:
        x, weight = z[k + 1, k], weights[k + 1, k]
        # The cheapest of what is left: when that is pruned, so are all others.
        least, pick, value, spend = np.inf, -1, 0.0, 0
        if zero_left[k]:
            least = zero_base[k + 1] + weight * (x * x)
        if free[k] == 0.0 or (room[k + 1] > 0 if single else left[group[k]] > 0):
            pick = _nearest_left(k, x - slack[k + 1, k], levels, count, lower, upper)
            if pick >= 0:
                v = levels[k, pick]
                bound = kept_base[k + 1] + v * doubled[k] + weight * ((v - x) * (v - x))
                if bound < least:
                    least = bound
                    value = v
                    spend = 1 if free[k] > 0.0 else 0
                else:
                    pick = -1
        if not least < limit:
            # Back to the input fixed before, which gives its share of the capacity back.
            k += 1
            if k == m:
                done = True
                break
            if not single and free[k] > 0.0 and chosen[k] != 0.0:
                left[group[k]] += 1
            continue
        made += 1
        _take(k, pick, lower, upper, zero_left)
        chosen[k] = value
        delta = value - x
        partial = psi[k + 1] + pivots[k] * (delta * delta) + value * doubled[k]
        # Before the tests that depend on it: what rounding may have hidden counts for pruned nodes as well.
        reach[k] = max(reach[k], abs(delta))
        if k == 0:
            if not partial < limit:
                continue
            for i in range(m):
                best[i] = chosen[i]
            found[0] += 1
            if collect:
                break
            limit = partial
            continue
        _move(k, delta, z, shifts)
        remain = 0
        cost = NEVER
        if single:
            remain = room[k + 1] - spend
            if remain >= below[k]:
                cost = 0.0
            elif remain > 0:
                cost = price[k, remain]
            if tables:
                rest, kept = _price_table(k, cost, z, weights, doubled, levels, count, free, ceiling)
            else:
                rest, kept = _price_grid(k, cost, z, weights, slack, doubled, offset, low, high, free, ceiling)
            bound = partial + rest
            if 0 < remain < below[k]:
                bound -= cost * remain
                if kept > remain:
                    price[k, remain] = min(1.03 * cost, price_range[1])
                elif kept < remain:
                    price[k, remain] = max(0.97 * cost, price_range[0])
        else:
            if spend:
                left[group[k]] -= 1
            bound = partial + _bound_by_groups(
                k, tables, z, weights, slack, doubled, offset, low, high, levels, count, free, member, most_room, left,
                saved, top,
            )  # fmt: skip
        if bound >= limit:
            if not single and spend:
                left[group[k]] += 1
            continue
        psi[k] = partial
        room[k] = remain
        k -= 1
        x, weight = z[k + 1, k], weights[k + 1, k]
        base = bound - weight * (x * x)
        if single:
            if tables:
                saved[k] = _table_saving(k, x, weight, doubled[k], levels, count)
            else:
                saved[k] = _grid_saving(x, weight, slack[k + 1, k], doubled[k], offset[k], low[k], high[k])
        if free[k] == 0.0:
            kept_base[k + 1] = base - saved[k]
        elif single:
            base -= min(0.0, saved[k] + cost)
            zero_base[k + 1] = base
            kept_base[k + 1] = base + cost
        else:
            _set_group_bases(k, base, group, member, most_room, left, saved, top, zero_base, kept_base)
        _open_input(k, x - slack[k + 1, k], levels, count, free, lower, upper, zero_left)
    nodes[0] += made
    cut[0] = limit
    position[0] = m + 1 if done else k
    return done
