"""Methods beside the best that is possible.

A box is a certified interval: the best weights of the grid lie in it, and none lie above. Points are methods.
Each range rule has a panel, since its grids are other grids. [compare](compare.md)
"""

import layerbounds as lb
from layerbounds.report.comparison_plot import plot_comparison

rows = lb.compare(
    lb.demo_layers()["conv3"],
    bits=[2, 3, 4],
    range=["mse", "gram"],
    methods=["rtn", "gptq", "obq", "beam"],
    channels=range(3),
    time_limit=5,
)
plot_comparison(rows, "methods.svg")
