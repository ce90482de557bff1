"""Channel selection by the lasso."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.methods.pruning import PruningView, finish
from layerbounds.methods.shared.masks import unit_form

#: Bisections of λ, and sweeps over the factors for each of them.
BISECTIONS, SWEEPS = 40, 200
#: A sweep that moves no factor by more than this ends them.
TOLERANCE = 1e-7


def lasso(view: PruningView, refit: bool = True) -> Float:
    """Scale each unit by a factor, with a price λ on their sizes that leaves as many as may be kept; then refit.

    He, Zhang & Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017): λ by bisection, as in
    the authors' code; on the whole Gram matrix in place of sampled positions, one λ for each group of units, and
    without their alternation of factors and weights. Where no λ leaves exactly as many, the largest factors decide.

    Parameters
    ----------
    view : PruningView
    refit : bool
        Re-optimise what is kept, where the problem allows it.
    """
    structure = view.structure
    matrix, linear = unit_form(view)
    full = structure.capacity >= np.bincount(structure.group, minlength=len(structure.capacity))
    largest = np.zeros(len(structure.capacity))
    np.maximum.at(largest, structure.group, np.abs(linear))
    low, high = np.zeros(len(largest)), np.where(full, 0.0, largest)
    factors = np.zeros(len(linear))
    above, below = np.zeros(len(linear)), np.zeros(len(linear))
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        factors = _descend(matrix, linear, middle[structure.group], factors)
        many = np.bincount(structure.group[factors != 0.0], minlength=len(largest))
        fits = many <= structure.capacity
        here = fits[structure.group]
        above, below = np.where(here, factors, above), np.where(here, below, factors)
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        if np.all(full | (many == structure.capacity)):
            break
    return finish(view, structure.keep_largest(_ranked(above, below)), refit)


def _ranked(above: Float, below: Float) -> Float:
    """Scores that put what the larger λ leaves before what only the smaller one does, each by size."""
    score = np.abs(below)
    return score + np.where(above != 0.0, np.abs(above) + 2.0 * np.max(score, initial=0.0), 0.0)


def _descend(matrix: Float, linear: Float, price: Float, start: Float) -> Float:
    """Minimise βᵀAβ − 2cᵀβ + 2Σ price·|β| by coordinates: all of them, then those that are not zero until they rest."""
    factors, diagonal = start.copy(), np.diag(matrix)
    slope = linear - matrix @ factors
    every: Int = np.flatnonzero(diagonal > 0.0)
    units = every
    for _ in range(SWEEPS):
        moved = 0.0
        for g in units.tolist():
            wanted = slope[g] + diagonal[g] * factors[g]
            new = np.sign(wanted) * max(abs(wanted) - price[g], 0.0) / diagonal[g]
            if new != factors[g]:
                step = new - factors[g]
                slope -= step * matrix[g]
                factors[g] = new
                moved = max(moved, abs(step))
        if moved <= TOLERANCE * max(float(np.max(np.abs(factors), initial=0.0)), 1e-300):
            # At rest among the units that are there: does another one want to come in?
            wants = (np.abs(slope) > price * (1.0 + 1e-9)) & (factors == 0.0) & (diagonal > 0.0)
            if not np.any(wants) or (units is every and moved == 0.0):
                break
            units = np.flatnonzero((factors != 0.0) | wants)
        elif units is every:
            units = np.flatnonzero(factors != 0.0)
    return factors
