"""What rows and layers that share a Gram matrix share: a matrix that can be factorized, and a first minorant of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import joblib
import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.kernels.arithmetic import Arithmetic
from layerbounds.kernels.factorization import cholesky
from layerbounds.search.shared_results import Recent

#: Gram matrices whose diagonal has a mean within this factor of 1 are taken as they are.
MODERATE = 1e6
#: What an input of little energy adds to the objective at least, relative to the mean.
SIDE = 0.05
#: Newton steps for up to so many inputs, and beyond: there they are better spent when the rows' weights are known.
STEPS, FEW_STEPS = ((1024, 40), (2048, 12)), 0


@dataclass(frozen=True, eq=False)
class PreparedGram:
    """A Gram matrix in units that suit single precision.

    Attributes
    ----------
    gram : ndarray of shape (n, n)
        Positive definite: where the given one is not, its diagonal is slightly larger.
    unit : float
        The given matrix is this times ``gram``, up to the diagonal.
    d : ndarray of shape (n,)
        A diagonal below ``gram``, for inputs that count alike; not proven.
    """

    gram: Float
    unit: float
    d: Float


#: Those of the last matrices: layers that see the same inputs follow one another.
_recent: Recent[PreparedGram | None] = Recent(2)


def prepare_gram(gram: Float, arithmetic: Arithmetic, threads: int, stop: Callable[[], bool]) -> PreparedGram | None:
    """Prepare a Gram matrix, or recall what was prepared; None where it cannot be factorized even after a shift."""

    def compute() -> PreparedGram | None:
        definite = _definite(gram)
        if definite is None:
            return None
        matrix, unit = definite
        steps = next((count for most, count in STEPS if len(gram) <= most), FEW_STEPS)
        energy = np.diag(matrix)
        objective = 1.0 + SIDE * float(np.mean(energy)) / energy
        d = ascend_newton(matrix, objective, steps=steps, arithmetic=arithmetic, stop=stop)
        return PreparedGram(matrix, unit, d)

    if stop():
        return None
    key = joblib.hash(gram), arithmetic.name, threads
    prepared = _recent.get(key, compute, threads)
    if stop():
        # What the end of the time has cut short is not for later solves.
        _recent.forget(key)
    return prepared


def _definite(gram: Float) -> tuple[Float, float] | None:
    mean = float(np.mean(np.diag(gram)))
    unit = 1.0 if 1.0 / MODERATE < mean < MODERATE else mean
    matrix = gram if unit == 1.0 else gram / unit
    if cholesky(matrix) is not None:
        return matrix, unit
    shifted = semidefinite_shift(matrix)
    return None if shifted is None else (shifted[0], unit)
