"""What three bits per weight buy.

Contenders of several kinds, drawn at the bits that they take, masks included. [is 2:4 worth
it](how-to/is-2-4-worth-it.md)
"""

import layerbounds as lb
from layerbounds.report.standings_plot import plot_standings

standings = lb.contest(lb.demo_layers()["conv3"], ["4+2:4", "4+.5", "3", "2"], channels=range(3), time_limit=2)
plot_standings([standings], "equal_storage.svg")
