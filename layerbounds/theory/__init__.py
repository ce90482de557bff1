"""Expected errors of quantization and pruning on distributions, exactly (docs/theory.md).

The analysis of Kuzmin et al., "Pruning vs Quantization: Which is Better?" (NeurIPS 2023), sections 2 and 3; and
yardsticks of a layer's error on random weights (docs/yardsticks.md).
"""

from layerbounds.theory.curves import Curve, Point, crossings, curve
from layerbounds.theory.distributions import Distribution
from layerbounds.theory.families import (
    as_distribution,
    empirical,
    laplace,
    logistic,
    mixture,
    normal,
    student_t,
    truncated,
    uniform,
)
from layerbounds.theory.lattice import chance_below, typical_error
from layerbounds.theory.pruning import PruningError, pruning_error
from layerbounds.theory.quantization import QuantizationError, optimal_scale, quantization_error
from layerbounds.theory.rate_distortion import least_distortion
from layerbounds.theory.storage import equal_density

__all__ = [
    "Curve",
    "Distribution",
    "Point",
    "PruningError",
    "QuantizationError",
    "as_distribution",
    "chance_below",
    "crossings",
    "curve",
    "empirical",
    "equal_density",
    "laplace",
    "least_distortion",
    "logistic",
    "mixture",
    "normal",
    "optimal_scale",
    "pruning_error",
    "quantization_error",
    "student_t",
    "truncated",
    "typical_error",
    "uniform",
]
