"""Compiled lists of codes: what a node's clusters may still keep, and which clusters are worth merging.

Arrays as in `kernels.clusters`.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import kernel

#: Largest number of inputs of a cluster all of whose codes are tried, and of a merged one.
MOST, WIDEST = 14, 30


@kernel(error_model="numpy", nested=True)
def ones(code):
    """Number of bits set."""
    count = 0
    while code:
        code &= code - 1
        count += 1
    return count


@kernel(error_model="numpy")
def count_inputs(code, number):
    """How many free inputs each code keeps."""
    for at in range(len(code)):
        number[at] = ones(code[at])


@kernel(error_model="numpy")
def every_code(first, member, place, kept, free, group, capacity, budget, base, code):
    """All codes that fit the pattern: with several groups, those that use up the room of every group."""
    total = 0
    for g in range(len(free)):
        base[g] = total
        f0 = first[g] + kept[g]
        masks = np.zeros(free[g], np.int64)
        rooms = np.zeros(free[g], np.int64)
        count = 0
        for p in range(free[g] if not budget else 0):
            own = group[member[first[g] + place[f0 + p]]]
            mask = 0
            new = True
            for q in range(free[g]):
                if group[member[first[g] + place[f0 + q]]] == own:
                    mask |= 1 << (free[g] - 1 - q)
                    if q < p:
                        new = False
            if new:
                masks[count] = mask
                rooms[count] = min(capacity[own], ones(mask))
                count += 1
        for x in range(1 << free[g]):
            fits = True
            for e in range(count):
                if ones(x & masks[e]) != rooms[e]:
                    fits = False
            if fits:
                code[total] = x
                total += 1
    base[len(free)] = total


@kernel(error_model="numpy")
def inherit(first, member, before, status, old_base, old_code, base, code):
    """Codes of a node that agree with its status, from those of an ancestor; False where a cluster has none left.

    Fixed inputs have the same bit in all of them, so that the codes without these bits are ascending, too.
    """
    total = 0
    shifts = np.empty(WIDEST, np.int64)
    for g in range(len(first) - 1):
        base[g] = total
        width = 0
        for p in range(first[g], first[g + 1]):
            if before[member[p]] == 0:
                width += 1
        keep = 0
        drop = 0
        left = 0
        for p in range(first[g], first[g + 1]):
            i = member[p]
            if before[i] == 0:
                width -= 1
                if status[i] == 1:
                    keep |= 1 << width
                elif status[i] == -1:
                    drop |= 1 << width
                else:
                    shifts[left] = width
                    left += 1
        for at in range(old_base[g], old_base[g + 1]):
            x = old_code[at]
            if x & drop or x & keep != keep:
                continue
            if keep | drop:
                y = 0
                for e in range(left):
                    y = 2 * y + ((x >> shifts[e]) & 1)
                x = y
            code[total] = x
            total += 1
        if total == base[g]:
            return False
    base[len(first) - 1] = total
    return True


@kernel(error_model="numpy")
def count_pairs(first, second, gap):
    """How many pairs of two ascending lists of costs add up to no more than the gap."""
    total = 0
    b = len(second)
    for a in range(len(first)):
        while b > 0 and first[a] + second[b - 1] > gap:
            b -= 1
        total += b
    return total


@kernel(error_model="numpy")
def choose_pair(base, ranked, width, link, gap, most):
    """The two clusters to merge: of all that leave at most ``most`` codes, those of the strongest link; or −1.

    Parameters
    ----------
    base, ranked
        The costs of each cluster's codes, ascending.
    width
        Inputs of each cluster that are not dropped.
    link
        How strongly the clusters depend on one another.
    """
    groups = len(width)
    total = base[groups]
    best = -1.0
    one = -1
    other = -1
    number = 0
    for g in range(groups):
        for h in range(g + 1, groups):
            if width[g] + width[h] > WIDEST:
                continue
            own = base[g + 1] - base[g] + base[h + 1] - base[h]
            count = count_pairs(ranked[base[g] : base[g + 1]], ranked[base[h] : base[h + 1]], gap)
            if total - own + count > most:
                continue
            if link[g, h] > best:
                best = link[g, h]
                one = g
                other = h
                number = count
    return one, other, number


@kernel(error_model="numpy")
def join(code, cost, other_code, other_cost, bits, gap, new_code, new_cost):
    """Codes of two clusters as one, those of the first one in front of the ``bits`` of the second one; how many."""
    total = 0
    for a in range(len(code)):
        for b in range(len(other_code)):
            # The test of `count_pairs`, which says how much room there is.
            if cost[a] + other_cost[b] <= gap:
                new_code[total] = (code[a] << bits) | other_code[b]
                new_cost[total] = cost[a] + other_cost[b]
                total += 1
    return total
