"""Quantization or pruning, at equal bits.

b bits against density b/16: where the intervals do not overlap, one of the two is proven better.
[versus](versus.md)
"""

import layerbounds as lb
from layerbounds.report.versus_plots import plot_comparison

comparison = lb.versus(lb.demo_layers()["conv3"], bits=[2, 3, 4, 5], channels=range(3), time_limit=2)
print(comparison.statement())
plot_comparison(comparison, "quantization_or_pruning.svg")
