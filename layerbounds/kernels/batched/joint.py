"""Compiled steps of the batched relaxation of joint problems: what a row does between two matrix products.

Units and groups are slices, as in `layerbounds.kernels.batched.support`. ``values[r, i]`` are the sorted levels of
weight i of row r with zero among them; some may stand there twice.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.batched.support import RELAX
from layerbounds.kernels.compilation import kernel

#: Evaluations of a sum of shares, how near to the capacity it comes, relative to that, the relative width at which a
#: price is known, and halvings for the share of a unit of several inputs.
EVALUATIONS, NEAR, WIDTH, HALVINGS = 20, 1e-3, 1e-4, 12


@kernel(error_model="numpy", nested=True)
def _first(levels, positive):
    """The level other than zero that is next to zero on one side; outside of the list where there is none."""
    if positive:
        k = 0
        while k < len(levels) and not levels[k] > 0:
            k += 1
        return k
    k = len(levels) - 1
    while k >= 0 and not levels[k] < 0:
        k -= 1
    return k


@kernel(error_model="numpy", nested=True)
def _touching(levels, k, by, d, price):
    """Where the line from (0, 0) touches the points (m, d m² + price) over the magnitudes m of the levels from k on."""
    a = abs(levels[k])
    while 0 <= k + by < len(levels):
        b = abs(levels[k + by])
        if price <= d * a * b:
            break
        k += by
        a = b
    return k


@kernel(error_model="numpy", nested=True)
def _beyond(levels, k, by, d, p, q, z):
    """The least of d·z·(interpolated squares of y/z) + p(y − q)² over y ≥ z·(magnitude k), and the cell it lies in."""
    a = abs(levels[k])
    half = np.float32(0.5) * d / p
    while 0 <= k + by < len(levels):
        b = abs(levels[k + by])
        slope = (a + b) * half
        if q <= z * b + slope:
            return min(max(q - slope, z * a), z * b), a, b
        k += by
        a = b
    return z * a, a, a


@kernel(error_model="numpy", nested=True)
def _unit_slope(values, q, d, p, first, last, z):
    """The derivative by its share z of the least of Σ d z·(interpolated squares of y/z) + p(y − q)² of a unit."""
    total = np.float32(0.0)
    for i in range(first, last):
        levels = values[i]
        positive = q[i] > 0
        by = 1 if positive else -1
        k = _first(levels, positive)
        if not 0 <= k < len(levels):
            continue
        m = abs(q[i])
        half = np.float32(0.5) * d[i] / p[i]
        b = abs(levels[k])
        if m <= z * b + b * half:
            # Between zero and the first level nothing depends on z.
            continue
        y, a, b = _beyond(levels, k, by, d[i], p[i], m, z)
        if y > z * a and y < z * b:
            total -= d[i] * a * b
        else:
            a = y / z
            total += d[i] * a * a + np.float32(2.0) * p[i] * a * (y - m)
    return total


@kernel(error_model="numpy", nested=True)
def _unit_share(values, q, d, p, first, last, price):
    """The share of a unit of several inputs at a price."""
    if _unit_slope(values, q, d, p, first, last, np.float32(1.0)) + price <= 0:
        return np.float32(1.0)
    low, high = np.float32(0.0), np.float32(1.0)
    for _ in range(HALVINGS):
        z = np.float32(0.5) * (low + high)
        if _unit_slope(values, q, d, p, first, last, z) + price <= 0:
            low = z
        else:
            high = z
    return low


@kernel(error_model="numpy", nested=True)
def _shares(values, q, start, d, p, inputs, first, last, price, share):
    """The shares of a group's units at a price; returns their sum and by how much it falls with the price."""
    total = np.float32(0.0)
    rate = np.float32(0.0)
    for u in range(first, last):
        i = inputs[u]
        if inputs[u + 1] > i + 1:
            share[u] = _unit_share(values, q, d, p, i, inputs[u + 1], price)
            total += share[u]
            continue
        share[u] = 0.0
        levels = values[i]
        k = start[i]
        if not 0 <= k < len(levels):
            continue
        k = _touching(levels, k, 1 if q[i] > 0 else -1, d[i], price)
        a = abs(levels[k])
        z = (abs(q[i]) - (d[i] * a + price / a) / (np.float32(2.0) * p[i])) / a
        if z >= 1.0:
            share[u] = 1.0
            total += np.float32(1.0)
        elif z > 0.0:
            share[u] = z
            total += z
            rate += np.float32(0.5) / (p[i] * a * a)
    return total, rate


@kernel(error_model="numpy", nested=True)
def _price(values, q, start, d, p, inputs, first, last, capacity, guess, share):
    """The least price at which a group's shares add up to its capacity at most, from a guess; fills them."""
    total, rate = _shares(values, q, start, d, p, inputs, first, last, np.float32(0.0), share)
    if total <= capacity:
        return np.float32(0.0)
    low, high = np.float32(0.0), np.float32(0.0)
    for u in range(first, last):
        # Above this price nothing is kept.
        most = np.float32(0.0)
        for i in range(inputs[u], inputs[u + 1]):
            most += p[i] * q[i] * q[i] * (p[i] / d[i])
        high = max(high, most)
    high += np.float32(1e-30)
    if low < guess < high:
        price = guess
    else:
        price = (total - capacity) / rate if rate > 0 else high
    for _ in range(EVALUATIONS):
        if not low < price < high:
            price = np.float32(0.5) * (low + high)
        total, rate = _shares(values, q, start, d, p, inputs, first, last, price, share)
        off = total - capacity
        if abs(off) <= NEAR * capacity:
            break
        if off > 0:
            low = price
        else:
            high = price
        if high - low <= WIDTH * high:
            break
        price = price + off / rate if rate > 0 else low
    return price


@kernel(error_model="numpy")
def joint_step(e, w, d, p, values, inputs, units, capacity, theta, y, t, share, spread, right, begin, end):
    """From the deviation e = (M + P)⁻¹(Dw + P(y − t − w)) to the proximal point y of each row at w + e + t.

    Parameters
    ----------
    e, w : ndarray of shape (rows, n)
        The deviation from the target, and that.
    d, p : ndarray of shape (n,)
        The minorant and the penalties, positive.
    values : ndarray of shape (rows, n, levels)
    inputs, units, capacity
        See above.
    theta : ndarray of shape (rows, groups)
        Guesses of the prices of a unit; they become the values.
    y, t : ndarray of shape (rows, n)
        The proximal point and the scaled multipliers; both move on.
    share : ndarray of shape (rows, units)
        The weights z of keeping units.
    spread : ndarray of shape (rows, n)
        The variance of each weight in the mixture of levels that y is.
    right : ndarray of shape (rows, n)
        Becomes Dw + P(y − t − w).
    """
    n = len(d)
    q = np.empty(n, np.float32)
    start = np.empty(n, np.int64)
    for r in range(begin, end):
        for i in range(n):
            q[i] = RELAX * (w[r, i] + e[r, i]) + (1.0 - RELAX) * y[r, i] + t[r, i]
            start[i] = _first(values[r, i], q[i] > 0)
        for g in range(len(capacity)):
            first, last = units[g], units[g + 1]
            if capacity[g] == 0:
                share[r, first:last] = 0.0
                continue
            theta[r, g] = _price(
                values[r], q, start, d, p, inputs, first, last, np.float32(capacity[g]), theta[r, g], share[r]
            )
        for u in range(len(inputs) - 1):
            z = share[r, u]
            alone = inputs[u + 1] == inputs[u] + 1
            for i in range(inputs[u], inputs[u + 1]):
                levels = values[r, i]
                k = start[i]
                point = np.float32(0.0)
                square = np.float32(0.0)
                if z > 0.0 and 0 <= k < len(levels):
                    by = 1 if q[i] > 0 else -1
                    if alone and z < 1.0:
                        # A mixture of zero and the level that the line from it touches.
                        price = theta[r, _group(units, u)] if len(capacity) > 1 else theta[r, 0]
                        a = abs(levels[_touching(levels, k, by, d[i], price)])
                        point = z * a
                        square = point * a
                    else:
                        b = abs(levels[k])
                        low = abs(q[i]) - np.float32(0.5) * b * d[i] / p[i]
                        if low <= z * b:
                            point = max(low, np.float32(0.0))
                            square = point * b
                        else:
                            point, a, b = _beyond(levels, k, by, d[i], p[i], abs(q[i]), z)
                            square = (a + b) * point - z * a * b
                    spread[r, i] = max(square - point * point, np.float32(0.0))
                    point = by * point
                else:
                    spread[r, i] = 0.0
                y[r, i] = point
                t[r, i] = q[i] - point
                right[r, i] = d[i] * w[r, i] + p[i] * (point + point - q[i] - w[r, i])


@kernel(nested=True)
def _group(units, u):
    """The group of a unit."""
    low, high = 0, len(units) - 1
    while low + 1 < high:
        middle = (low + high) >> 1
        if units[middle] <= u:
            low = middle
        else:
            high = middle
    return low


@kernel()
def level_savings(c, d, values, saving, begin, end):
    """Per weight the most that a level saves beside zero, 2cv − dv².

    Parameters
    ----------
    c : ndarray of float64, shape (rows, n)
        Dz − h.
    d : ndarray of float64, shape (n,)
    values : ndarray of float32, shape (rows, n, levels)
    saving : ndarray of float64, shape (rows, n)
        Returned.
    begin, end : int
        Rows.
    """
    for r in range(begin, end):
        for i in range(len(d)):
            best = 0.0
            for v in values[r, i]:
                best = max(best, (2.0 * c[r, i] - d[i] * v) * v)
            saving[r, i] = best
