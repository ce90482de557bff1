"""Masks that several rows share on real layers: the tables of docs/structured-results.md.

    python -m benchmarks.structured [--time-limit 10] [--cpu] [--parts channels,columns,masks,peers,network] [--out F]

Channels and columns: certified intervals, an independent enumeration where sets are few, and every method's error.
Masks: kept weights stay as they are. Peers: SCIP, HiGHS and, where it is installed and its licence takes the size,
Gurobi, on one to four rows. Network: all layers of ResNet-20 at half of their channels (needs PyTorch). Layers come
from the folder that the environment variable LAYERBOUNDS_DATA names, or ``../shared/data``; without it the embedded
network's are used alone. Live inputs get 1e-6 of the mean diagonal on the diagonal, so that every solver has the same
positive definite instance. One thread; seconds are those of the processor, limits those of the clock. With ``--cpu``
they are of the processor, too, except for the peers: for machines that do other work.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import layerbounds as lb
from benchmarks.native_speed import machine
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.kernels import compilation

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
RESNET, MINILM = "resnet20_layers.safetensors", "minilm_layers.safetensors"
HEADS, WIDE = "encoder.layer.2.attention.output.dense", "encoder.layer.3.output.dense"
PARTS = ("channels", "columns", "masks", "peers", "network")
DENSITIES = (0.25, 0.5, 0.75)
METHODS: dict[str, dict[str, object]] = {
    "magnitude": {},
    "wanda": {"refit": True},
    "thinet": {},
    "lasso": {},
    "obs": {},
    "osscar": {},
    "admm": {},
    "forward": {},
    "swap": {"kicks": 10},
}
#: Methods are run up to so many units: backward removal of wide layers takes minutes.
METHOD_UNITS = 600
#: Sets that the independent enumeration tries.
MOST_SETS = 13_000
#: Images of the calibration set for the whole network, and its limit in seconds a layer.
IMAGES, NETWORK_LIMIT = 128, 5.0


@dataclass(frozen=True)
class Instance:
    """A layer, a pattern, and a density."""

    layer: lb.Layer
    pattern: str
    density: float | None
    refit: bool = True
    share: int | str | None = None

    @property
    def problem(self) -> lb.PruningProblem:
        """What is solved."""
        count = {} if self.density is None else {"density": self.density}
        return lb.pruning_problem(
            self.layer, pattern=self.pattern, refit=self.refit, share=self.share, **count  # type: ignore[arg-type]
        )  # fmt: skip


@dataclass
class Row:
    """What one run found; errors relative to f(0), ratios to the upper bound."""

    part: str
    layer: str
    what: str
    units: int
    kept: str
    upper: float
    ratio: float
    root: float
    proven: bool
    seconds: float
    nodes: int
    brute_seconds: float | None = None
    brute_ratio: float | None = None
    methods: dict[str, float] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)


def definite(layer: lb.Layer, name: str) -> lb.Layer:
    """The layer with a slightly raised diagonal."""
    gram = layer.gram[0].copy()
    live = np.flatnonzero(layer.live(0))
    gram[live, live] += 1e-6 * np.mean(np.diag(gram)[live])
    return lb.Layer(layer.weight, gram, name)


def principal(layer: lb.Layer, rows: int) -> lb.Layer:
    """The combinations of output channels of largest energy: an instance small enough for other solvers."""
    _, vectors = np.linalg.eigh(layer.matrix @ layer.gram[0] @ layer.matrix.T)
    small = vectors.T[::-1][:rows] @ layer.matrix
    return lb.Layer(small.reshape(rows, *layer.weight.shape[1:]), layer.gram[0], layer.name)


def real_layers() -> dict[str, lb.Layer]:
    """By name; demonstration layers begin with "demo."."""
    demo = {f"demo.{name}": layer for name, layer in lb.demo_layers().items() if layer.groups == 1}
    found = {name: definite(layer, name) for name, layer in demo.items()}
    for file in (RESNET, MINILM):
        if (DATA / file).is_file():
            found |= {name: definite(layer, name) for name, layer in lb.load_layers(DATA / file).items()}
    return found


def instances(part: str, layers: dict[str, lb.Layer]) -> Iterator[Instance]:
    """The instances of a part whose layers are there."""
    plans: list[tuple[str, str, Sequence[float | None], int | str | None]] = {
        "channels": [
            ("demo.conv3", "channel", DENSITIES, None),
            ("demo.conv2", "channel", DENSITIES, None),
            ("layer1.0.conv1", "channel", DENSITIES, None),
            ("layer1.0.conv1", "position", [0.5], None),
            ("layer2.1.conv1", "channel", DENSITIES, None),
            ("layer3.2.conv2", "channel", DENSITIES, None),
            (HEADS, "head:32", DENSITIES, None),
        ],
        "columns": [
            ("linear", "column", DENSITIES, None),
            ("linear", "2:4", [None], "all"),
            ("layer1.0.conv1", "column", DENSITIES, None),
            ("layer3.2.conv2", "column", [0.5], None),
            (HEADS, "column", [0.5], None),
            (HEADS, "2:4", [None], 16),
            (WIDE, "column", [0.5], None),
        ],
        "masks": [
            ("layer2.1.conv1", "channel", [0.5], None),
            ("layer3.2.conv2", "channel", DENSITIES, None),
            ("layer1.0.conv1", "column", [0.25, 0.5], None),
            ("layer2.1.conv1", "column", [0.5], None),
            ("layer3.2.conv2", "column", [0.5], None),
            (WIDE, "column", [0.5], None),
        ],
    }[part]
    for name, pattern, densities, share in plans:
        for density in densities if name in layers else ():
            yield Instance(layers[name], pattern, density, part != "masks", share)


def solve(part: str, instance: Instance, limit: float) -> Row:
    """The interval of the first set of rows."""
    problem = instance.problem
    layer, rows = problem.layer, problem.sets(range(problem.layer.out_features))[0]
    begin = time.process_time()
    solution = lb.solve(problem, "native", channels=rows, time_limit=limit, jobs=1)
    seconds = time.process_time() - begin
    upper, energy = float(solution.upper_bound[0]), float(layer.energy()[rows].sum())
    structure = problem.structure.restrict(layer.live(0))
    kept = problem.pattern.label if instance.density is None else f"{int(structure.capacity[0])}"
    traced = solution.trace[0]
    return Row(
        part,
        layer.name,
        f"{problem.pattern.label}, {len(rows)} row{'s' * (len(rows) > 1)}{'' if problem.refit else ', mask'}",
        len(structure.group),
        kept,
        upper / energy,
        float(solution.lower_bound[0]) / upper if upper > 0 else 1.0,
        traced[0].lower / upper if len(traced) > 1 and upper > 0 else math.nan,
        solution.status[0] == lb.Status.OPTIMAL,
        seconds,
        int(solution.nodes[0]),
    )


@contextmanager
def processor_clock() -> Iterator[None]:
    """Searches of one thread count the processor's time, which other processes do not take from."""
    usual = compilation.time
    compilation.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    try:
        yield
    finally:
        compilation.time = usual


def warm_up(refit: bool) -> None:
    """Compile what solving needs: that is not part of an instance's time."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 120)) + rng.normal(size=(400, 1))
    layer = lb.Layer(rng.normal(size=(6, 120)), x.T @ x / 400)
    for pattern in ("column", "head:3", "head:10"):
        problem = lb.pruning_problem(layer, density=0.4, pattern=pattern, refit=refit)
        lb.solve(problem, "native", time_limit=3.0, jobs=1)
        lb.run_heuristic("swap", problem, kicks=1)


def enumerate_sets(problem: lb.PruningProblem) -> tuple[float, float] | None:
    """The least error of all sets of a single group by batched least squares, and seconds; None where they are many."""
    layer = problem.layer
    live = layer.live(0)
    gram, target = layer.gram[0][np.ix_(live, live)], layer.target[:, live]
    structure = problem.structure.restrict(live)
    m, k = len(structure.group), int(structure.capacity[0])
    sizes = np.bincount(structure.unit)
    if len(structure.capacity) > 1 or math.comb(m, k) > MOST_SETS or len(set(sizes.tolist())) > 1:
        return None
    begin, best, b = time.process_time(), np.inf, gram @ target.T
    members = np.argsort(structure.unit, kind="stable").reshape(m, -1)
    energy = float(np.sum(target.T * b))
    sets = np.array(list(combinations(range(m), k)))
    for first in range(0, len(sets), 256):
        index = members[sets[first : first + 256]].reshape(len(sets[first : first + 256]), -1)
        solved = np.linalg.solve(gram[index[:, :, None], index[:, None, :]], b[index])
        best = min(best, energy - float(np.max(np.sum(solved * b[index], axis=(1, 2)))))
    return best, time.process_time() - begin


def run_methods(instance: Instance, row: Row) -> None:
    """Every method's error over the upper bound."""
    problem = instance.problem
    rows = problem.sets(range(problem.layer.out_features))[0]
    energy = float(problem.layer.energy()[rows].sum())
    for name, options in METHODS.items():
        weights = lb.run_heuristic(name, problem, channels=rows, **options)
        error = float(lb.evaluate(problem, weights, channels=rows).error[0])
        row.methods[name] = error / energy / row.upper


def structured(part: str, layers: dict[str, lb.Layer], limit: float) -> Iterator[Row]:
    """Rows of the parts channels, columns and masks."""
    warm_up(part != "masks")
    for instance in instances(part, layers):
        row = solve(part, instance, limit)
        if part == "channels" and (found := enumerate_sets(instance.problem)) is not None:
            row.brute_ratio = found[0] / (row.upper * float(instance.layer.energy().sum()))
            row.brute_seconds = found[1]
        if part != "masks" and row.units <= METHOD_UNITS:
            run_methods(instance, row)
        yield row


def peers(layers: dict[str, lb.Layer], limit: float) -> Iterator[Row]:
    """Small instances for other solvers, beside the native engine."""
    warm_up(True)
    warm_up(False)
    names = ["scip", "highs"] + ["gurobi"] * (importlib.util.find_spec("gurobipy") is not None)
    plans = [
        ("demo.conv3", "channel", 0.5, 2),
        ("demo.conv3", "channel", 0.5, 4),
        ("layer1.0.conv1", "channel", 0.5, 1),
        ("linear", "column", 0.25, 2),
        ("linear", "column", 0.5, 2),
    ]
    for name, pattern, density, count in plans:
        if name not in layers:
            continue
        instance = Instance(principal(layers[name], count), pattern, density)
        row = solve("peers", instance, limit)
        for peer in names:
            row.peers[peer] = _peer(instance.problem, peer, limit, row.upper * float(instance.layer.energy().sum()))
        yield row
    for name in ("layer2.1.conv1", "layer3.2.conv2"):
        if name in layers:
            instance = Instance(layers[name], "channel", 0.5, refit=False)
            row = solve("peers", instance, limit)
            for peer in names:
                row.peers[peer] = _peer(instance.problem, peer, limit, row.upper * float(instance.layer.energy().sum()))
            yield row


def _peer(problem: lb.PruningProblem, name: str, limit: float, best: float) -> str:
    begin = time.process_time()
    try:
        solution = lb.solve(problem, name, time_limit=limit, jobs=1)
    except UnsupportedProblemError as error:
        return "licence" if "licence" in str(error) else "refused"
    seconds = time.process_time() - begin
    upper, claim = float(solution.upper_bound[0]) / best, float(solution.claimed_lower_bound[0]) / best
    if solution.status[0] in (lb.Status.OPTIMAL, lb.Status.CLAIMED):
        return f"claims the optimum, {upper:.4f} of ours, {seconds:.1f} s"
    return f"claims {max(claim, 0.0):.2f} of {upper:.4f}, {seconds:.1f} s"


def network() -> Iterator[Row]:
    """All layers of ResNet-20 at half of their channels; the classifier at half of its columns."""
    from examples.resnet20 import resnet20
    from layerbounds.capturing.loading import ArrayBatches, load_weights

    model = resnet20()
    load_weights(model, DATA / "resnet20_cifar10.safetensors")
    data = np.load(DATA / "cifar10_subset.npz")
    scaling = {"divide": 255.0, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    warm_up(True)
    layers = lb.capture(model, ArrayBatches(data["calib_images"][:IMAGES], 64, **scaling))
    for name, layer in layers.items():
        instance = Instance(definite(layer, name), "channel", 0.5)
        row = solve("network", instance, NETWORK_LIMIT)
        run_methods(instance, row)
        yield row


def table(part: str, rows: Sequence[Row]) -> str:
    """Markdown."""
    names = list(METHODS) if any(row.methods for row in rows) else []
    peer_names = sorted({name for row in rows for name in row.peers})
    brute = any(row.brute_seconds is not None for row in rows)
    head = ["layer", "what", "units", "kept", "error / f(0)", "root", "lower/upper", "s", "nodes"]
    head += ["enumerated, s"] * brute + peer_names + names
    lines = [f"### {part}\n", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.layer.replace("encoder.layer.", ""), row.what, str(row.units), row.kept, f"{row.upper:.5f}"]
        proven = "proven" if row.proven else f"{row.ratio:.3f}"
        root = "" if math.isnan(row.root) else f"{row.root:.2f}"
        cells += [root, proven, f"{row.seconds:.2f}", str(row.nodes)]
        if brute:
            cells.append("" if row.brute_seconds is None else f"{row.brute_seconds:.2f} ({row.brute_ratio:.6f})")
        cells += [row.peers.get(name, "") for name in peer_names]
        cells += [f"{row.methods[name]:.3f}" if name in row.methods else "" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--cpu", action="store_true", help="limits are of the processor's time")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    options = parser.parse_args()
    layers = real_layers()
    every: list[Row] = []
    print(f"{machine()}, {options.time_limit:g} s{' of the processor' * options.cpu}\n", flush=True)
    for part in options.parts.split(","):
        if part == "network" and not (DATA / "cifar10_subset.npz").is_file():
            print("network: the reference data are absent.")
            continue
        found = network() if part == "network" else peers(layers, options.time_limit) if part == "peers" else None
        rows = []
        begin = time.perf_counter()
        with processor_clock() if options.cpu and part != "peers" else nullcontext():
            for row in found or structured(part, layers, options.time_limit):
                rows.append(row)
                print(f"# {row.layer} {row.what} {row.kept}: {row.ratio:.3f} in {row.seconds:.1f} s", flush=True)
        every += rows
        print("\n" + table(part, rows) + f"\n{time.perf_counter() - begin:.0f} s by the clock\n", flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps([asdict(row) for row in every]), encoding="utf-8")


if __name__ == "__main__":
    main()
