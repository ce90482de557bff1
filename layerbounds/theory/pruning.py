"""Expected squared error of magnitude pruning (Kuzmin et al. 2023, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.exceptions import InputError
from layerbounds.theory.distributions import Empirical
from layerbounds.theory.families import as_distribution
from layerbounds.theory.quantization import decibels


@dataclass(frozen=True)
class PruningError:
    """Expected error of setting the smallest magnitudes to zero.

    Attributes
    ----------
    sparsity : float
    threshold : float
        The t with P(|x| ≤ t) = sparsity.
    total : float
        E[x²; |x| ≤ t].
    power : float
        E[x²].

    Examples
    --------
    >>> error = lb.theory.pruning_error(lb.theory.uniform(1.0), 0.5)
    >>> round(error.threshold, 9)
    0.5
    """

    sparsity: float
    threshold: float
    total: float
    power: float

    @property
    def snr_db(self) -> float:
        """10·log10(E[x²]/E[x²; |x| ≤ t]); infinite where only zeros are pruned."""
        return decibels(self.power, self.total)


def pruning_error(distribution: Any, sparsity: float) -> PruningError:
    """Expected squared error of magnitude pruning.

    Parameters
    ----------
    distribution : Distribution, scipy.stats frozen continuous distribution, or array_like of samples
        Of n samples the ⌊(1 − sparsity)·n⌋ largest magnitudes are kept.
    sparsity : float
        In [0, 1].

    Examples
    --------
    >>> round(lb.theory.pruning_error(lb.theory.uniform(1.0), 0.5).total, 6)
    0.041667
    """
    values = as_distribution(distribution)
    if not 0.0 <= sparsity <= 1.0:
        raise InputError(f"sparsity is {sparsity}; pass the pruned fraction, in [0, 1].")
    if isinstance(values, Empirical):
        count = len(values.magnitudes)
        pruned = count - int(np.floor((1.0 - sparsity) * count + 1e-9))
        threshold = float(values.magnitudes[pruned - 1]) if pruned else 0.0
        total = float(np.sum(values.magnitudes[:pruned] ** 2)) / count
    else:
        threshold = values.absolute_quantile(sparsity)
        total = float(values.partial(2, np.array([-threshold]), np.array([threshold]), np.zeros(1))[0])
    return PruningError(float(sparsity), threshold, total, values.power)
