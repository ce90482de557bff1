"""Free codebooks of a few inputs by trying every division into blocks of equal weights (docs/free-codebooks.md)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from layerbounds.arrays import Float, Int
from layerbounds.kernels import exact
from layerbounds.problems.free_codebook import FreeLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control

#: Inputs and divisions that are tried in floating point, divisions in integers, and how many at once.
MOST_INPUTS, MOST, MOST_EXACT, CHUNK = 24, 50_000, 4_000, 2_048
#: Divisions of least error whose levels are rounded in several ways, and shares of the largest singular value below
#: which one of the ways leaves directions out.
ROUNDED, CUTOFFS = 24, (None, 1e-12, 1e-9, 1e-6)

_LONG = np.longdouble
_UNIT_LONG = float(np.finfo(_LONG).eps)


def number_of_divisions(size: int, blocks: int) -> int:
    """Divisions of so many inputs into exactly so many blocks: a Stirling number of the second kind."""
    row = [1] + [0] * blocks
    for _ in range(size):
        row = [0] + [k * row[k] + row[k - 1] for k in range(1, blocks + 1)]
    return row[blocks]


def all_divisions(size: int, blocks: int) -> npt.NDArray[np.int8]:
    """The number of each input's block, one division a row; blocks are numbered as they come."""
    labels = np.zeros((1, 1), dtype=np.int8)
    used = np.ones(1, dtype=np.int64)
    for i in range(1, size):
        parts = []
        for label in range(min(i, blocks - 1) + 1):
            after = np.maximum(used, label + 1)
            fits = (label <= used) & (blocks - after <= size - 1 - i)
            column = np.full((int(fits.sum()), 1), label, dtype=np.int8)
            parts.append((np.hstack([labels[fits], column]), after[fits]))
        labels = np.vstack([part for part, _ in parts])
        used = np.concatenate([after for _, after in parts])
    return labels


class Divisions:
    """All divisions of one channel's inputs into as many blocks as there are levels.

    Merging blocks never lowers the least error, so that divisions into fewer blocks need not be tried.

    Parameters
    ----------
    task : Task
        Of more inputs than levels.
    control : Control

    Attributes
    ----------
    weights : ndarray of shape (n,) or None
        The best weights found.
    lower : float
        Below the error of all divisions, in the units of the task; rounding is charged.
    tried : int
    """

    def __init__(self, task: Task[FreeLevels], control: Control) -> None:
        self.task, self.control = task, control
        self.labels = all_divisions(len(task.target), task.allowed.count)
        self.weights: Float | None = None
        self.lower = 0.0
        self.tried = 0

    def bound(self, d: Float) -> bool:
        """Bound every division with a proven minorant, all entries positive; False where the time is out."""
        lower = np.inf
        best = np.inf
        for start in range(0, len(self.labels), CHUNK):
            if self.control.remaining() <= 0:
                return False
            labels = self.labels[start : start + CHUNK].astype(np.int64)
            weights = self._refitted(labels)
            value, low = self._enclosed(labels, weights, d)
            least = int(np.argmin(value))
            if value[least] < best:
                best, self.weights = float(value[least]), weights[least]
            lower = min(lower, float(np.min(low)))
            self.tried += len(labels)
        self.lower = max(float(np.nextafter(lower, -np.inf)), 0.0)
        return True

    def _refitted(self, labels: Int) -> Float:
        """The best weights of each division, up to rounding."""
        member = self._members(labels)
        matrix = np.swapaxes(member, 1, 2) @ (self.task.gram @ member)
        right = np.swapaxes(member, 1, 2) @ (self.task.gram @ self.task.target)
        diagonal = np.einsum("pkk->pk", matrix)
        scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        scaled = matrix * scale[:, :, None] * scale[:, None, :] + 1e-15 * np.eye(matrix.shape[1])
        try:
            solved = np.linalg.solve(scaled, (right * scale)[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            solved = right * scale
        return np.take_along_axis(scale * solved, labels, axis=1)

    def _members(self, labels: Int) -> Float:
        return np.asarray(labels[:, :, None] == np.arange(self.task.allowed.count), dtype=np.float64)

    def _enclosed(self, labels: Int, weights: Float, d: Float) -> tuple[Any, Any]:
        """The error of the weights and a lower bound on the least error of their division, for each."""
        n = len(d)
        wide = self.task.gram.astype(_LONG)
        deviation = weights.astype(_LONG) - self.task.target.astype(_LONG)
        slope, size = deviation @ wide, np.abs(deviation)
        spread = size @ np.abs(wide)
        value = np.sum(deviation * slope, axis=1)
        charge = 4 * (n + 4) * _UNIT_LONG * np.sum(size * spread, axis=1)
        # Along the levels the error falls no faster than its slope and the minorant's curvature allow.
        below = np.zeros(len(labels), dtype=_LONG)
        for block in range(self.task.allowed.count):
            inside = labels == block
            steep = np.abs(np.sum(np.where(inside, slope, 0), axis=1))
            steep += 4 * (n + 4) * _UNIT_LONG * np.sum(np.where(inside, spread, 0), axis=1)
            below += steep**2 / (inside @ d)
        return value, value - charge - below * (1 + 4 * (n + 4) * _UNIT_LONG)

    def exactly(self) -> bool:
        """Bound every division in integers, singular matrices included; False where the time is out."""
        gram, scale = exact.dyadic(self.task.gram)
        n = len(self.task.target)
        rows = [gram[i * n : (i + 1) * n] for i in range(n)]
        target, power = exact.dyadic(self.task.target)
        right = [sum(h * w for h, w in zip(row, target, strict=True)) for row in rows]
        energy = sum(b * w for b, w in zip(right, target, strict=True))
        errors: list[Fraction] = []
        for division in self.labels.tolist():
            if self.control.remaining() <= 0:
                return False
            errors.append(_least_error(rows, right, energy, division, self.task.allowed.count))
            self.tried += 1
        order = sorted(range(len(errors)), key=lambda index: errors[index])
        self.lower = max(exact.float_below(exact.times_power(errors[order[0]], scale + 2 * power)), 0.0)
        points = [p for index in order[:ROUNDED] for p in self._rounded(self.labels[index].astype(np.int64))]
        found = [exact.quadratic_form(self.task.gram, self.task.target, p) for p in points]
        self.weights = points[min(range(len(found)), key=lambda index: found[index])]
        return True

    def _rounded(self, labels: Int) -> list[Float]:
        """Weights of a division whose matrix may be singular, with all directions or without the flattest."""
        member = self._members(labels[None])[0]
        matrix = member.T @ self.task.gram @ member
        right = member.T @ (self.task.gram @ self.task.target)
        points = []
        for cutoff in CUTOFFS:
            try:
                levels = np.linalg.lstsq(matrix, right, rcond=cutoff)[0]
            except np.linalg.LinAlgError:
                continue
            # One step of refinement on the errors themselves.
            rest = member.T @ (self.task.gram @ (self.task.target - levels[labels]))
            points += [levels[labels], (levels + np.linalg.lstsq(matrix, rest, rcond=cutoff)[0])[labels]]
        return [p for p in points if np.all(np.isfinite(p))] or [self.task.allowed.nearest(self.task.target)]


def _least_error(rows: list[list[int]], right: list[int], energy: int, labels: list[int], blocks: int) -> Fraction:
    """The least error of a division in the integers' units: what elimination leaves of the last entry."""
    matrix = [[0] * (blocks + 1) for _ in range(blocks + 1)]
    for i, a in enumerate(labels):
        row = rows[i]
        for j, b in enumerate(labels):
            matrix[a][b] += row[j]
        matrix[a][blocks] += right[i]
        matrix[blocks][a] += right[i]
    matrix[blocks][blocks] = energy
    previous = 1
    while len(matrix) > 1:
        pivot = matrix[0][0]
        if pivot < 0:
            # Indefinite by rounding: a mean of squares is not negative.
            return Fraction(0)
        if pivot == 0:
            # Of a semidefinite matrix the whole row is zero.
            matrix = [row[1:] for row in matrix[1:]]
            continue
        following = exact.eliminate(matrix, 0, previous)
        assert following is not None
        matrix, previous = following, pivot
    return max(Fraction(matrix[0][0], previous), Fraction(0))
