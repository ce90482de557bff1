"""Time to proof, or the certified ratio at the time limit, of pruning real layers with refit.

    python -m benchmarks.pruning_speed [--time-limit 10] [--channels 0:3] [--layers linear,...] [--patterns 0.125,2:4]
                                       [--jobs 1] [--mask-only] [--peers]

Layers come from ``resnet20_layers.safetensors`` in the folder that the environment variable LAYERBOUNDS_DATA names,
else the embedded demonstration network is used. Instances are the live inputs alone, in groups of M for N:M as in the
layer with its dead inputs ("first n": renumbered), with 1e-6 of the mean diagonal added to the diagonal so that every
solver gets the same positive definite instance. With ``--peers``, Gurobi's big-M formulation runs on the
same instances, with one thread. The table at the end is the one of docs/pruning-results.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import platform
import time
from pathlib import Path

import numpy as np

import layerbounds as lb

SMALL = ((32, "layer1.0.conv1"), (48, "layer1.0.conv1"), (63, "layer1.0.conv1"))


def definite(layer: lb.Layer, count: int | None = None) -> lb.Layer:
    """The layer with a slightly raised diagonal; with ``count``, its first live inputs alone."""
    live = np.flatnonzero(layer.live(0))
    gram = layer.gram[0].copy()
    if count is not None:
        live = live[:count]
        gram = gram[np.ix_(live, live)]
        gram += 1e-6 * np.mean(np.diag(gram)) * np.eye(count)
        return lb.Layer(layer.matrix[:, live], gram, f"{layer.name} first {count}")
    gram[live, live] += 1e-6 * np.mean(np.diag(gram)[live])
    return lb.Layer(layer.matrix, gram, layer.name)


def instances(names: list[str]) -> list[lb.Layer]:
    """Real layers, or those of the demonstration network."""
    folder = os.environ.get("LAYERBOUNDS_DATA")
    path = Path(folder or "../shared/data") / "resnet20_layers.safetensors"
    if not path.is_file():
        print("LAYERBOUNDS_DATA names no folder with resnet20_layers.safetensors: demonstration layers instead.")
        return [definite(layer) for layer in lb.demo_layers().values() if layer.groups == 1]
    layers = lb.load_layers(path)
    small = [definite(layers[name], count) for count, name in SMALL]
    chosen = small + [definite(layer) for layer in layers.values()]
    return [layer for layer in chosen if not names or layer.name in names]


def peer(problem: lb.PruningProblem, channel: int, upper: float, limit: float) -> tuple[float, float, float]:
    """Gurobi with a valid big-M, |v_i − w_i| ≤ √(upper·(H⁻¹)_ii): lower, upper, seconds."""
    import gurobipy

    layer = problem.layer
    live = layer.live(0)
    gram, target = layer.gram[0][np.ix_(live, live)], layer.target[channel][live]
    structure = problem.structure.restrict(live)
    scale = upper
    reach = 1.000001 * np.sqrt(upper * np.diag(np.linalg.inv(gram)))
    begin = time.perf_counter()
    with gurobipy.Env(params={"OutputFlag": 0, "Threads": 1, "TimeLimit": limit}) as env, gurobipy.Model(env=env) as m:
        n = len(target)
        deviation = m.addMVar(n, lb=-reach, ub=reach)
        keep = m.addMVar(n, vtype="B")
        bound = np.abs(target) + reach
        m.addConstr(target + deviation <= bound * keep)
        m.addConstr(target + deviation >= -bound * keep)
        for group, capacity in enumerate(structure.capacity):
            m.addConstr(keep[np.flatnonzero(structure.group[structure.unit] == group)].sum() <= int(capacity))
        m.setObjective(deviation @ (gram / scale) @ deviation)
        m.optimize()
        return m.ObjBound * scale, m.ObjVal * scale, time.perf_counter() - begin


def peer_line(problem: lb.PruningProblem, channel: int, upper: float, limit: float) -> str:
    """What the peer solver reached, or why it did not run (its free licence is limited to small models)."""
    import gurobipy

    try:
        lower, value, seconds = peer(problem, channel, upper, limit)
    except gurobipy.GurobiError as error:
        return f"{'':26} gurobi: {error}"
    return f"{'':26} gurobi {lower / value:7.4f} of {value / upper:.4f} in {seconds:.2f} s"


def print_table(table: dict[tuple[str, int], dict[str, list[str]]], patterns: list[str], limit: float) -> None:
    """Markdown: seconds to the proof, or lower/upper at the time limit."""
    print(f"\nSeconds to the proof, or certified lower/upper at {limit:g} s, of each channel\n")
    print("| layer | n | " + " | ".join(patterns) + " |\n|" + "---|" * (len(patterns) + 2))
    for (name, live), cells in table.items():
        print(f"| {name} | {live} | " + " | ".join(", ".join(cells.get(p, [])) for p in patterns) + " |")


def main() -> None:
    """Run and print one line per channel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--channels", default="0:3")
    parser.add_argument("--layers", default="")
    parser.add_argument("--patterns", default="0.125,0.25,0.5,2:4")
    parser.add_argument("--jobs", type=int, default=1, help="threads on the tree of a channel")
    parser.add_argument("--mask-only", action="store_true")
    parser.add_argument("--peers", action="store_true", help="run Gurobi on the same instances, where it is installed")
    options = parser.parse_args()
    first, last = (int(x) for x in options.channels.split(":"))
    peers = options.peers and importlib.util.find_spec("gurobipy") is not None
    if options.peers and not peers:
        print("gurobipy is not installed: no peer solver in this run.")
    table: dict[tuple[str, int], dict[str, list[str]]] = {}
    print(
        f"layerbounds {lb.__version__}, Python {platform.python_version()}, {platform.machine()}, jobs={options.jobs}"
    )
    print(f"{'layer':26} {'live':>4} {'pattern':>7} {'ch':>2} {'root':>6} {'lo/up':>7} {'nodes':>7} {'s':>6} status")
    for layer in instances([x for x in options.layers.split(",") if x]):
        for text in options.patterns.split(","):
            count = {} if ":" in text else {"density": float(text)}
            pattern = text if ":" in text else "unstructured"
            problem = lb.pruning_problem(layer, pattern=pattern, refit=not options.mask_only, **count)
            for channel in range(first, min(last, layer.out_features)):
                s = lb.solve(problem, "native", channels=[channel], time_limit=options.time_limit, jobs=options.jobs)
                upper = s.upper_bound[0]
                ratio = s.lower_bound[0] / upper if upper > 0 else math.nan
                root = s.trace[0][0].lower / upper if s.trace[0] and upper > 0 else math.nan
                print(
                    f"{layer.name:26} {int(layer.live(0).sum()):4} {text:>7} {channel:2} {root:6.3f} {ratio:7.4f} "
                    f"{s.nodes[0]:7} {s.seconds[0]:6.2f} {s.status[0]}",
                    flush=True,
                )
                proven = s.status[0] == lb.Status.OPTIMAL
                table.setdefault((layer.name, int(layer.live(0).sum())), {}).setdefault(text, []).append(
                    f"{s.seconds[0]:.2f} s" if proven else f"{ratio:.3f}"
                )
                if peers and not options.mask_only:
                    print(peer_line(problem, channel, upper, options.time_limit), flush=True)
    print_table(table, options.patterns.split(","), options.time_limit)


if __name__ == "__main__":
    main()
