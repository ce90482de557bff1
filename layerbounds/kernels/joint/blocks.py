"""Blocks of inputs of a joint problem: all choices of a block near its least cost, searched depth first.

Block g has the inputs ``first[g]`` to ``first[g + 1]``, which are numbered in this order; ``block[g]`` is its matrix
B_g, positive definite, and ``factor[g]`` the upper triangular R with B_g = RᵀR, both padded. Row i of ``levels`` holds
the ``count[i]`` sorted values that input i may take; ``zero[i]`` says which of them is 0, −1 where none is.

``unit[i]`` is the unit of input i. A unit with a value other than zero costs ``price[u]``, takes one of the ``room`` of
its ``pool[u]`` where that is not −1, and is counted where ``counted[u]``. Units lie within blocks; so do pools.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

#: Sweeps of coordinate descent over a block's box, and the relative move that ends them.
MOST_SWEEPS, SETTLED = 60, 1e-7
#: Weights are taken anew when a cost is by so many widths below the one that they refer to.
RESCALE = 50.0
#: After ``most`` nodes a search goes on with half the span, and so on; then with the least choices alone, until it has
#: taken so many times as many nodes.
NARROWINGS, LAST = 4, 30


@kernel(error_model="numpy")
def factor_blocks(block, size, factor):
    """Upper Cholesky factors of padded blocks; False where one is not positive definite."""
    for g in range(len(size)):
        m = size[g]
        b = block[g]
        r = factor[g]
        for k in range(m):
            pivot = b[k, k]
            for q in range(k):
                pivot -= r[q, k] * r[q, k]
            if not pivot > 0.0:
                return False
            pivot = np.sqrt(pivot)
            r[k, k] = pivot
            for j in range(k + 1, m):
                s = b[k, j]
                for q in range(k):
                    s -= r[q, k] * r[q, j]
                r[k, j] = s / pivot
    return True


@kernel(error_model="numpy", nested=True)
def settle_priced(b, m, levels, count, alone, anchor, slope, centre, tilt):
    """A point of the hull near the least of 2 slopeᵀ(x − anchor) + (x − anchor)ᵀB(x − anchor) + prices.

    The price of an input is linear on either side of zero, with its full value at the ends. ``tilt`` returns
    B(x − anchor) + slope. Any point serves: a better one makes the search around it shorter.
    """
    for p in range(m):
        low = levels[p, 0]
        high = levels[p, count[p] - 1]
        centre[p] = min(max(anchor[p], low), high)
    for p in range(m):
        s = slope[p]
        for q in range(m):
            s += b[p, q] * (centre[q] - anchor[q])
        tilt[p] = s
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for p in range(m):
            low = levels[p, 0]
            high = levels[p, count[p] - 1]
            if not low < high:
                continue
            new = centre[p] - tilt[p] / b[p, p]
            if alone[p] > 0.0:
                up = 0.5 * alone[p] / (high * b[p, p]) if high > 0.0 else 0.0
                down = 0.5 * alone[p] / (low * b[p, p]) if low < 0.0 else 0.0
                if new > up:
                    new -= up
                elif new < down:
                    new -= down
                else:
                    new = 0.0
            new = min(max(new, low), high)
            move = new - centre[p]
            if move != 0.0:
                centre[p] = new
                for q in range(m):
                    tilt[q] += b[q, p] * move
                largest = max(largest, abs(move) / (high - low))
        if largest < SETTLED:
            break


@kernel(error_model="numpy", nested=True)
def own_terms(m, levels, count, zero, alone, centre, tilt, own):
    """What each value costs by itself, 2t(v − c) and the price of one alone, less the least: nonnegative.

    Returns the sum of the least ones.
    """
    total = 0.0
    for p in range(m):
        least = np.inf
        for j in range(count[p]):
            term = 2.0 * tilt[p] * (levels[p, j] - centre[p])
            if j != zero[p]:
                term += alone[p]
            own[p, j] = term
            least = min(least, term)
        for j in range(count[p]):
            own[p, j] -= least
        total += least
    return total


@kernel(error_model="numpy", nested=True)
def round_down(r, m, levels, count, zero, own, centre, unit, price, pool, room, used, step, index):
    """One choice, each value the cheapest given those before it; its cost, infinite where there is none."""
    total = 0.0
    k = m - 1
    while k >= 0:
        shift = 0.0
        for j in range(k + 1, m):
            shift += r[k, j] * step[j]
        pivot = r[k, k]
        u = unit[k]
        best = np.inf
        at = -1
        for j in range(count[k]):
            x = pivot * (levels[k, j] - centre[k]) + shift
            value = x * x + own[k, j]
            if j != zero[k] and used[u] == 0:
                if pool[u] >= 0 and room[pool[u]] == 0:
                    continue
                value += price[u]
            if value < best:
                best = value
                at = j
        if at < 0:
            break
        index[k] = at
        step[k] = levels[k, at] - centre[k]
        if at != zero[k]:
            if used[u] == 0 and pool[u] >= 0:
                room[pool[u]] -= 1
            used[u] += 1
        total += best
        k -= 1
    for p in range(k + 1, m):
        if index[p] != zero[p]:
            u = unit[p]
            used[u] -= 1
            if used[u] == 0 and pool[u] >= 0:
                room[pool[u]] += 1
    return total if k < 0 else np.inf


@kernel(error_model="numpy", nested=True)
def add_leaves(
    levels, count, zero, own, x0, pivot, centre, above, limit, free_unit, counts, blocked, extra, width, reference,
    point, marginal, leaf,
):  # fmt: skip
    """All values of a block's last input, the others fixed, whose cost is at most ``limit``.

    Adds their weights exp(−(cost − reference)/width) to ``leaf`` = Σ e, Σ e v, Σ e v², Σ e [new], Σ e v [new], [new]
    whether the value makes its unit count, or writes least costs into ``marginal`` where ``width`` is 0.
    Returns the least cost and its value.
    """
    for j in range(6):
        leaf[j] = 0.0
    best = np.inf
    at = -1
    for j in range(count[0]):
        x = pivot * (levels[0, j] - centre[0]) + x0
        value = above + x * x + own[0, j]
        new = j != zero[0] and free_unit
        if new:
            if blocked:
                continue
            value += extra
        if not value <= limit:
            continue
        if value < best:
            best = value
            at = j
        if width > 0.0:
            e = np.exp((reference - value) / width)
            v = point[0, j]
            leaf[0] += e
            leaf[1] += e * v
            leaf[2] += e * v * v
            if new and counts:
                leaf[3] += e
                leaf[4] += e * v
        elif value < marginal[0, j]:
            marginal[0, j] = value
    return best, at


@kernel(error_model="numpy", nested=True)
def rescale(m, factor, moments, mass):
    """Multiply all sums by a factor; 0 makes them 0 whatever they were."""
    for p in range(m + 2):
        for q in range(m + 1):
            moments[p, q] = factor * moments[p, q] if factor > 0.0 else 0.0
    for p in range(m + 1):
        mass[p] = factor * mass[p] if factor > 0.0 else 0.0


@kernel(error_model="numpy", nested=True)
def forget(m, count, marginal):
    """No choice with any value is known."""
    for p in range(m):
        for j in range(count[p]):
            marginal[p, j] = np.inf


@kernel(error_model="numpy", force_inline=True)
def add_moments(m, many, value, width, index, point, leaf, moments, mass, marginal):
    """Add the leaves of a choice of all other inputs to the sums, or to the least costs with each value."""
    if width == 0.0:
        for p in range(1, m):
            if value < marginal[p, index[p]]:
                marginal[p, index[p]] = value
        return
    total = leaf[0]
    numbers = many * total + leaf[3]
    for p in range(1, m):
        x = point[p, index[p]]
        row = moments[p]
        f = x * total
        for q in range(p, m):
            row[q] += f * point[q, index[q]]
        moments[0, p] += x * leaf[1]
        moments[m, p] += f
        moments[m + 1, p] += x * numbers
    moments[0, 0] += leaf[2]
    moments[m, 0] += leaf[1]
    moments[m + 1, 0] += many * leaf[1] + leaf[4]
    moments[m, m] += total
    mass[many] += total - leaf[3]
    if leaf[3] > 0.0:
        mass[many + 1] += leaf[3]


@kernel(error_model="numpy", force_inline=True)
def take_back(k, index, zero, unit, counted, pool, room, used):
    """Take the choice of an input back; returns how many counted units that empties."""
    u = unit[k]
    if index[k] == zero[k]:
        return 0
    used[u] -= 1
    if used[u] > 0:
        return 0
    if pool[u] >= 0:
        room[pool[u]] += 1
    return 1 if counted[u] else 0


@kernel(error_model="numpy", nested=True)
def search_block(
    r, m, levels, count, zero, own, centre, unit, price, pool, counted, room, used, span, width, most, budget, point,
    best, index, work, moments, mass, marginal,
):  # fmt: skip
    """Visit every choice of a block that costs at most its least cost plus ``span``.

    The cost is Σ_k (Σ_j R_kj (v_j − c_j))² + own terms + prices of units of several inputs: all nonnegative.

    Parameters
    ----------
    best : ndarray of int64, shape (m,)
        A choice to start from, −1 first where there is none; returns the best one.
    point : ndarray of shape (m, values)
        The values less what moments refer to.
    moments : ndarray of shape (m + 2, m + 1)
        Returns with a positive ``width`` Σ e x xᵀ in its first rows, Σ e x in row m and Σ e N x in row m + 1; in the
        last column of these two rows Σ e and what the weights refer to.
    mass : ndarray of shape (m + 1,)
        Returns Σ e of the choices with each number N of counted units.
    marginal : ndarray of shape (m, values)
        With ``width`` 0 returns the least cost with each value, infinite where that is above the span.

    Returns
    -------
    tuple
        The least cost (NaN where it took too many nodes, infinite where nothing is allowed), and the nodes.
    """
    step, shift, distance = work[0], work[1], work[2]
    leaf = np.zeros(6)
    least = round_down(r, m, levels, count, zero, own, centre, unit, price, pool, room, used, step, index)
    for p in range(m):
        best[p] = index[p]
    reference, limit = least, least + span
    rescale(m, 0.0, moments, mass)
    if width == 0.0:
        forget(m, count, marginal)
    nodes, narrowings, turn, many = 0, 0, most, 0
    k = m - 1
    distance[m] = 0.0
    shift[k] = 0.0
    index[k] = -1
    while k < m:
        if k == 0:
            u = unit[0]
            free_unit = used[u] == 0
            blocked = free_unit and pool[u] >= 0 and room[pool[u]] == 0
            nodes += 1
            value, at = add_leaves(
                levels, count, zero, own, shift[0], r[0, 0], centre, distance[1], limit, free_unit, counted[u],
                blocked, price[u], width, reference, point, marginal, leaf,
            )  # fmt: skip
            if at >= 0 and value < reference - RESCALE * width:
                # Weights refer to the least cost so far, or they overflow.
                rescale(m, np.exp((value - reference) / width) if width > 0.0 else 0.0, moments, mass)
                reference = value
                if width > 0.0:
                    value, at = add_leaves(
                        levels, count, zero, own, shift[0], r[0, 0], centre, distance[1], limit, free_unit, counted[u],
                        blocked, price[u], width, reference, point, marginal, leaf,
                    )  # fmt: skip
            if at >= 0:
                index[0] = at
                if value < least:
                    least = value
                    limit = least + span
                    for p in range(m):
                        best[p] = index[p]
                add_moments(m, many, value, width, index, point, leaf, moments, mass, marginal)
            if m == 1:
                break
            k = 1
            continue
        u = unit[k]
        j = index[k]
        if j >= 0:
            many -= take_back(k, index, zero, unit, counted, pool, room, used)
        j += 1
        while j < count[k]:
            x = r[k, k] * (levels[k, j] - centre[k]) + shift[k]
            value = distance[k + 1] + x * x + own[k, j]
            if j != zero[k] and used[u] == 0:
                value += price[u]
                if pool[u] >= 0 and room[pool[u]] == 0:
                    value = np.inf
            if value <= limit:
                break
            j += 1
        if j == count[k]:
            k += 1
            continue
        nodes += 1
        if nodes >= turn and width > 0.0:
            # Too many choices: from here on those farther above the least cost are left out; their weights are small.
            narrowings += 1
            turn = (narrowings + 1) * most
            span = 0.5 * span if narrowings < NARROWINGS else 0.0
            limit = least + span
        if nodes > LAST * most or nodes > budget:
            # The counters are left as they were found.
            for p in range(k + 1, m):
                take_back(p, index, zero, unit, counted, pool, room, used)
            return np.nan, nodes
        index[k] = j
        if j != zero[k]:
            if used[u] == 0:
                if pool[u] >= 0:
                    room[pool[u]] -= 1
                if counted[u]:
                    many += 1
            used[u] += 1
        step[k] = levels[k, j] - centre[k]
        distance[k] = value
        k -= 1
        s = 0.0
        for q in range(k + 1, m):
            s += r[k, q] * step[q]
        shift[k] = s
        index[k] = -1
    moments[m + 1, m] = reference
    return least, nodes


@kernel(error_model="numpy")
def sweep_blocks(
    first, block, factor, levels, count, zero, unit, price, pool, counted, room, z, h, span, width, most, budget,
    centre, tilt, least, smooth, mean, second, cross, number, marginal,
):  # fmt: skip
    """Least of 2hᵀ(v − z) + (v − z)ᵀB(v − z) + prices over the choices of every block, and the spread of the best ones.

    Parameters
    ----------
    span : float
        How much above a block's least cost choices count.
    width : float
        Choices have the weights exp(−cost/width); 0: least costs with each value instead.
    most, budget : int
        Nodes after which a search begins to leave out choices, and those of all searches together.
    centre, tilt : ndarray of shape (n,)
        Return the point c around which a block is searched, and B(c − z) + h.
    least, smooth : ndarray of shape (groups,)
        Return the least costs, NaN after too many nodes, and −width·log Σ exp(−cost/width).
    mean : (n,), second : (groups, m, m), cross : (n,)
        Return the mean of v − z, Σ w (v − z)(v − z)ᵀ, and the covariance of v with the number of counted units.
    number : ndarray of shape (groups, m + 1)
        Returns the logarithm of the weight of each number of counted units, −∞ where there is no choice.
    marginal : ndarray of shape (n, values)
        Returns with ``width`` 0 how much above ``least`` the least cost with each value is; infinite above the span.
    """
    widest = factor.shape[1]
    longest = levels.shape[1]
    own, point, local_marginal = np.empty((widest, longest)), np.empty((widest, longest)), np.empty((widest, longest))
    best, index = np.empty(widest, np.int64), np.empty(widest, np.int64)
    work = np.empty((3, widest + 1))
    moments, mass = np.empty((widest + 2, widest + 1)), np.empty(widest + 1)
    alone = np.empty(widest)
    inputs = np.zeros(len(price), np.int64)
    used = np.zeros(len(price), np.int64)
    shared = price.copy()
    for i in range(len(unit)):
        inputs[unit[i]] += 1
    for i in range(len(unit)):
        if inputs[unit[i]] == 1:
            shared[unit[i]] = 0.0
    total = 0
    for g in range(len(first) - 1):
        f0 = first[g]
        m = first[g + 1] - f0
        part = slice(f0, f0 + m)
        for p in range(m):
            i = f0 + p
            alone[p] = price[unit[i]] - shared[unit[i]]
            for j in range(count[i]):
                point[p, j] = levels[i, j] - z[i]
        settle_priced(
            block[g], m, levels[part], count[part], alone, z[part], h[part], centre[part], tilt[part]
        )  # fmt: skip
        floor = own_terms(m, levels[part], count[part], zero[part], alone, centre[part], tilt[part], own)
        offset = floor
        for p in range(m):
            offset += (centre[f0 + p] - z[f0 + p]) * (tilt[f0 + p] + h[f0 + p])
        value, nodes = search_block(
            factor[g], m, levels[part], count[part], zero[part], own, centre[part], unit[part], shared, pool, counted,
            room, used, span, width, most, budget - total, point, best, index, work, moments, mass, local_marginal,
        )  # fmt: skip
        total += nodes
        least[g] = value + offset
        if not value < np.inf:
            smooth[g] = np.nan
            continue
        if width == 0.0:
            for p in range(m):
                for j in range(count[f0 + p]):
                    marginal[f0 + p, j] = local_marginal[p, j] - value
            continue
        total_mass = moments[m, m]
        smooth[g] = moments[m + 1, m] - width * np.log(total_mass) + offset
        many = 0.0
        for p in range(m + 1):
            number[g, p] = np.log(mass[p] / total_mass) if mass[p] > 0.0 else -np.inf
            many += p * mass[p] / total_mass
        for p in range(m):
            mean[f0 + p] = moments[m, p] / total_mass
            cross[f0 + p] = moments[m + 1, p] / total_mass - many * mean[f0 + p]
        for p in range(m):
            for q in range(p, m):
                second[g, p, q] = moments[p, q] / total_mass
                second[g, q, p] = second[g, p, q]
    return total
