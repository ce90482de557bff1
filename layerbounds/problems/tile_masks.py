"""The masks of a tile that are worth most: what projections and bounds of tiled patterns need."""

from __future__ import annotations

import functools
from itertools import combinations, product

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import kron

from layerbounds.arrays import Bool, Float, Int

#: Tiles of at most so many rows and columns are enumerated.
LISTED = 4
#: Choices of columns that are tried for a group; beyond, columns are added one by one and exchanged.
MOST_CHOICES = 5000


@functools.cache
def maximal_masks(rows: int, columns: int, per_row: int, per_column: int) -> Bool:
    """All masks of a tile to which nothing can be added, shape (masks, rows, columns).

    Parameters
    ----------
    rows, columns : int
        At most `LISTED` each.
    per_row, per_column : int
        Most kept entries.
    """
    lines = [
        np.isin(np.arange(columns), chosen)
        for many in range(min(per_row, columns) + 1)
        for chosen in combinations(range(columns), many)
    ]
    masks = np.array([np.zeros((0, columns), dtype=bool)])
    for _ in range(rows):
        masks = np.array([[*mask, line] for mask in masks for line in lines])
        masks = masks[np.all(masks.sum(axis=1) <= per_column, axis=1)]
    room = (masks.sum(axis=2, keepdims=True) < per_row) & (masks.sum(axis=1, keepdims=True) < per_column) & ~masks
    return np.asarray(masks[~room.any(axis=(1, 2))])


def best_in_tile(score: Float, per_row: int, per_column: int) -> Bool:
    """A mask of largest total score with so many entries in each row and column, at most; scores are not negative.

    Parameters
    ----------
    score : ndarray of shape (rows, columns)
    per_row, per_column : int
    """
    rows, columns = score.shape
    if per_column >= rows:
        return largest_entries(score, per_row)
    if per_row >= columns:
        return largest_entries(score.T, per_column).T
    if max(rows, columns) <= LISTED:
        masks = maximal_masks(rows, columns, per_row, per_column)
        return np.asarray(masks[np.argmax(np.tensordot(masks, score, 2))])
    # Both kinds of limits together are an interval matrix's: the corners of the polytope are whole.
    limits = [kron(np.eye(rows), np.ones((1, columns))), kron(np.ones((1, rows)), np.eye(columns))]
    left = np.vstack([part.toarray() for part in limits])
    right = np.concatenate([np.full(rows, per_row), np.full(columns, per_column)])
    scale = float(score.max(initial=0.0))
    found = linprog(-score.ravel() / (scale if scale > 0 else 1.0), left, right, bounds=(0, 1), method="highs-ds")
    mask = np.zeros(score.shape, dtype=bool) if found.x is None else found.x.reshape(score.shape) > 0.5
    return _within(score, mask, per_row, per_column)


def _within(score: Float, mask: Bool, per_row: int, per_column: int) -> Bool:
    """The mask, entries added while there is room, largest first; whatever exceeds the limits is not taken."""
    rows, columns = np.full(score.shape[0], per_row), np.full(score.shape[1], per_column)
    result = np.zeros_like(mask)
    order = np.lexsort((-score.ravel(), ~mask.ravel()))
    for r, i in zip(*np.unravel_index(order, score.shape), strict=True):
        if rows[r] > 0 and columns[i] > 0:
            result[r, i] = True
            rows[r] -= 1
            columns[i] -= 1
    return result


def largest_entries(score: Float, many: int) -> Bool:
    """The entries of largest score in each row, so many of them."""
    mask = np.zeros(score.shape, dtype=bool)
    if many > 0:
        order = np.argsort(-score, axis=1, kind="stable")[:, :many]
        np.put_along_axis(mask, order, True, axis=1)
    return mask


def best_columns(score: Float, per_row: int, used: int) -> Bool:
    """A mask of a group in which so many columns are used, and so many entries of each row: best, or nearly so.

    Parameters
    ----------
    score : ndarray of shape (rows, columns)
        Not negative.
    per_row, used : int
    """
    columns = score.shape[1]
    if used >= columns:
        return largest_entries(score, per_row)
    choices = column_choices(columns, used)
    if choices is not None:
        chosen = choices[int(np.argmax(choice_values(score, per_row, choices)))]
    else:
        chosen = _grown(score, per_row, used)
    inside = np.full(score.shape, -1.0)
    inside[:, chosen] = score[:, chosen]
    return largest_entries(inside, min(per_row, used))


@functools.cache
def column_choices(columns: int, used: int) -> Int | None:
    """All choices of columns, shape (choices, used); None where they are too many."""
    count = 1.0
    for j in range(used):
        count *= (columns - j) / (j + 1.0)
    return np.array(list(combinations(range(columns), used))) if count <= MOST_CHOICES else None


def choice_values(score: Float, per_row: int, choices: Int) -> Float:
    """What each choice of columns is worth: the largest entries of each row in them."""
    inside = score[:, choices]
    many = min(per_row, choices.shape[1])
    if many < choices.shape[1]:
        inside = np.partition(inside, choices.shape[1] - many, axis=2)[:, :, choices.shape[1] - many :]
    return np.asarray(inside.sum(axis=(0, 2)))


def _grown(score: Float, per_row: int, used: int) -> Int:
    """Columns added one by one where they add most, then exchanged while that helps."""

    def worth(chosen: list[int]) -> float:
        return float(choice_values(score, per_row, np.array([chosen]))[0])

    columns = range(score.shape[1])
    chosen: list[int] = []
    for _ in range(used):
        chosen.append(max((i for i in columns if i not in chosen), key=lambda i: worth([*chosen, i])))
    best = worth(chosen)
    for at, new in product(range(used), columns):
        if new in chosen:
            continue
        trial = [*chosen[:at], new, *chosen[at + 1 :]]
        if worth(trial) > best:
            chosen, best = trial, worth(trial)
    return np.array(sorted(chosen))
