"""El0ps in an environment of its own: reads a problem (JSON) from standard input, writes the result to standard output.

It needs numpy and el0ps only, and none of this package. A small problem first compiles everything.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
from el0ps.datafit import Leastsquares
from el0ps.penalty import Bigm
from el0ps.solver import BnbSolver


def solve(matrix, y, largest, price, limit):
    """One problem min ½‖y − Ax‖² + λ‖x‖₀ with |x| ≤ M: support size, x, seconds, nodes, and whether it is solved."""
    solver = BnbSolver(time_limit=limit)
    result = solver.solve(Leastsquares(y), Bigm(largest), matrix, price)
    size = int(np.count_nonzero(np.abs(result.x) > 1e-12 * largest))
    return size, result.x, result.solve_time, result.iter_count, str(result.status) == "optimal"


def main():
    """Try prices until the optimum has k nonzeros, or none can."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    matrix, y = np.asfortranarray(job["matrix"], dtype=np.float64), np.array(job["y"], dtype=np.float64)
    rng = np.random.default_rng(0)
    solve(np.asfortranarray(rng.normal(size=(6, 4))), rng.normal(size=6), 10.0, 0.1, 60.0)
    low, high, price = 0.0, np.inf, job["price"]
    left, tries = 2.0 * job["limit"], 0
    while True:
        tries += 1
        size, x, seconds, nodes, solved = solve(matrix, y, job["largest"], price, min(job["limit"], max(left, 0.01)))
        left -= seconds
        found = solved and size == job["k"]
        if found or not solved or left <= 0.0 or tries == 60 or high <= low * (1.0 + 1e-9):
            break
        # Few nonzeros: the price is too high.
        low, high = (low, price) if size < job["k"] else (price, high)
        price = 2.0 * low if high == np.inf else 0.5 * high if low == 0.0 else float(np.sqrt(low * high))
    result = {"found": found, "solved": solved, "size": size, "x": x.tolist(), "seconds": seconds, "nodes": int(nodes)}
    with os.fdopen(out, "w") as stream:
        json.dump({**result, "price": price, "tries": tries}, stream)


if __name__ == "__main__":
    main()
