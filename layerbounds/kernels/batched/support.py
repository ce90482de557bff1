"""Compiled steps of the batched relaxation of pruning: what a row does between two matrix products.

Inputs are sorted by unit and units by group: unit u has the inputs ``inputs[u]:inputs[u + 1]``, group g the units
``units[g]:units[g + 1]``. Kernels work on the rows ``begin:end``, so that threads can share them.
"""

from __future__ import annotations

import numpy as np

from layerbounds.kernels.compilation import REORDER, kernel

#: Evaluations of a sum of shares, and how near to the capacity it has to come, relative to that.
EVALUATIONS, NEAR = 40, 1e-5
#: Over-relaxation of the splitting.
RELAX = 1.6


@kernel(error_model="numpy", fastmath=REORDER, force_inline=True)
def shares_at(slope, offset, theta, share):
    """Shares clip(slope·θ + offset, 0, 1); returns their sum and its derivative."""
    total = np.float32(0.0)
    rate = np.float32(0.0)
    for u in range(len(slope)):
        value = slope[u] * theta + offset[u]
        inside = min(max(value, np.float32(0.0)), np.float32(1.0))
        share[u] = inside
        total += inside
        rate += slope[u] if inside == value else np.float32(0.0)
    return total, rate


@kernel(error_model="numpy", nested=True)
def share_out(slope, offset, capacity, most, theta, share):
    """The shares of sum ``capacity``: safeguarded Newton steps for θ from a guess, θ ≤ ``most``; returns θ."""
    share[:] = 0.0
    positive = 0
    low, high = most, np.float32(-np.inf)
    for u in range(len(slope)):
        if slope[u] > 0.0:
            positive += 1
            low = min(low, -offset[u] / slope[u])
            high = max(high, (np.float32(1.0) - offset[u]) / slope[u])
    if capacity <= 0 or positive == 0:
        return theta
    if high <= most and positive <= capacity:
        for u in range(len(slope)):
            share[u] = 1.0 if slope[u] > 0.0 else 0.0
        return theta
    if high > most:
        high = most
        total, rate = shares_at(slope, offset, most, share)
        if total <= capacity:
            return most
    if not low < theta < high:
        theta = np.float32(0.5) * (low + high)
    for _ in range(EVALUATIONS):
        total, rate = shares_at(slope, offset, theta, share)
        off = total - capacity
        if abs(off) <= NEAR * capacity:
            break
        if off > 0.0:
            high = theta
        else:
            low = theta
        step = theta - off / rate
        if not (rate > 0.0 and low < step < high):
            step = np.float32(0.5) * (low + high)
        if step == theta:
            break
        theta = step
    return theta


@kernel(error_model="numpy", fastmath=REORDER)
def refit_step(e, w, d, kappa, inputs, units, capacity, theta, y, t, share, right, begin, end):
    """From the deviation e = (M + P)⁻¹(Dw + P(y − t − w)) to the proximal point y of each row at w + e + t.

    Parameters
    ----------
    e, w : ndarray of shape (rows, n)
        The deviation from the target, and that. Small deviations would be lost in their sum, which
        solves (M + P)x = Hw + P(y − t).
    d : ndarray of shape (n,)
        The minorant; P = κD.
    kappa : ndarray of shape (units,)
    inputs, units, capacity
        See above.
    theta : ndarray of shape (rows, groups)
        Guesses of 1/√λ, λ the price of a unit; they become the values.
    y, t : ndarray of shape (rows, n)
        The proximal point and the scaled multipliers; both move on.
    share : ndarray of shape (rows, units)
        The weights z of keeping units.
    right : ndarray of shape (rows, n)
        Becomes Dw + P(y − t − w).
    """
    many = len(kappa)
    slope = np.empty(many, np.float32)
    offset = np.empty(many, np.float32)
    q = np.empty(len(d), np.float32)
    for u in range(many):
        offset[u] = -np.float32(1.0) / kappa[u]
    for r in range(begin, end):
        for i in range(len(d)):
            q[i] = RELAX * (w[r, i] + e[r, i]) + (1.0 - RELAX) * y[r, i] + t[r, i]
        for u in range(many):
            total = np.float32(0.0)
            for i in range(inputs[u], inputs[u + 1]):
                total += d[i] * q[i] * q[i]
            slope[u] = np.sqrt(total)
        for g in range(len(capacity)):
            part = slice(units[g], units[g + 1])
            theta[r, g] = share_out(
                slope[part], offset[part], capacity[g], np.float32(np.inf), theta[r, g], share[r, part]
            )
        for u in range(many):
            scaled = kappa[u] * share[r, u]
            pull = scaled / (np.float32(1.0) + scaled)
            for i in range(inputs[u], inputs[u + 1]):
                point = q[i] * pull
                y[r, i] = point
                t[r, i] = q[i] - point
                right[r, i] = d[i] * (w[r, i] + kappa[u] * (point + point - q[i] - w[r, i]))


@kernel(error_model="numpy", fastmath=REORDER)
def mask_step(e, w, d, p, original, inputs, units, capacity, theta, y, t, share, right, begin, end):
    """The same where a kept weight is the original one: v = ω z on each unit, 0 ≤ z ≤ 1.

    ``p`` are the penalties, shape (n,), and θ = −λ/2 for the price λ ≥ 0 of a unit.
    """
    many = len(inputs) - 1
    slope = np.empty(many, np.float32)
    offset = np.empty(many, np.float32)
    q = np.empty(len(d), np.float32)
    for r in range(begin, end):
        for i in range(len(d)):
            q[i] = RELAX * (w[r, i] + e[r, i]) + (1.0 - RELAX) * y[r, i] + t[r, i]
        for u in range(many):
            curve = np.float32(0.0)
            pull = np.float32(0.0)
            for i in range(inputs[u], inputs[u + 1]):
                kept = original[r, i]
                curve += p[i] * kept * kept
                pull += p[i] * kept * q[i] - np.float32(0.5) * d[i] * kept * kept
            positive = curve > 0.0
            slope[u] = np.float32(1.0) / curve if positive else np.float32(0.0)
            offset[u] = pull / curve if positive else np.float32(0.0)
        for g in range(len(capacity)):
            part = slice(units[g], units[g + 1])
            theta[r, g] = share_out(
                slope[part], offset[part], capacity[g], np.float32(0.0), theta[r, g], share[r, part]
            )
        for u in range(many):
            for i in range(inputs[u], inputs[u + 1]):
                point = original[r, i] * share[r, u]
                y[r, i] = point
                t[r, i] = q[i] - point
                right[r, i] = d[i] * w[r, i] + p[i] * (point + point - q[i] - w[r, i])
