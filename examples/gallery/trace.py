"""How an interval closes.

Lower bounds are solid, upper bounds dashed, both over the best error found: where they meet, the optimum is
proven. The best weights are mostly known early, the proof takes the time. [how to read an
interval](concepts/how-to-read-an-interval.md)
"""

import layerbounds as lb
from layerbounds.report.plots import plot_trace

problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=3)
solution = lb.solve(problem, channels=range(3), time_limit=20, jobs=1)
plot_trace(solution, "trace.svg")
