"""Prune first or quantize first.

The error of each order over the best of both at once, for every channel. [prune and
quantize](how-to/prune-and-quantize.md)
"""

import layerbounds as lb

gap = lb.order_gap(lb.demo_layers()["conv3"], bits=2, density=0.25, channels=range(3), time_limit=2)
print(gap.winner)
gap.plot("order.svg")
