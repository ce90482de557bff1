"""Expected errors on a distribution of weights.

No layer and no data: quantization and magnitude pruning of weights with a heavy tail, at equal bits.
[theory](theory.md)
"""

from layerbounds import theory
from layerbounds.report.theory_plots import plot_errors

curve = theory.curve(theory.student_t(2, quantile=1e-4), (2, 3, 4, 5, 6, 7, 8))
plot_errors(curve, "distributions.svg")
