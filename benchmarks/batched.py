"""All channels of a layer at once: speed of the batched backend, and its bounds beside those of the engine.

    python -m benchmarks.batched [--layers smollm2:q_proj,minilm:3.output.dense] [--synthetic 2048:2048,4096:4096]
                                 [--transformer 576:1536:1] [--bits 3] [--density .5 | --pattern 2:4]
                                 [--granularity 128] [--asymmetric] [--blocks 0,9] [--effort 1] [--engine 4]
                                 [--engine-time 10] [--jobs 1] [--device cpu]

Real layers come from ``NAME_layers.safetensors`` in the folder that the environment variable LAYERBOUNDS_DATA names; a
layer is named by the unique end of its name. Synthetic ones have the spectrum of a language model's down_proj layer
(eigenvalues k^-0.91 in random directions), eight inputs of 49 times the energy, and weights of Student's t distribution
with five degrees of freedom: they serve for time, as their bounds are worse than those of real layers. ``--transformer
HIDDEN:FFN:BLOCKS`` has the seven linear layers of each block, of which q, k and v, and gate and up, share their inputs.

Both sides are measured in one run: the batched backend on all channels, and with ``--engine N`` the native one on N
channels spread over the layer. Seconds of the processor are those of the whole call of `solve`; beside them stands how
fast the machine multiplies single-precision matrices at that moment.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import layerbounds as lb
from benchmarks.native_speed import machine
from layerbounds.problems.problem import Problem
from layerbounds.solution import Solution

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
REAL = (
    "smollm2:self_attn.q_proj,smollm2:mlp.gate_proj,smollm2:mlp.down_proj,minilm:attention.self.query,"
    "minilm:attention.output.dense,minilm:3.output.dense,resnet20:layer3.2.conv2"
)
#: Decay of the eigenvalues, inputs of much energy and how much, degrees of freedom of the weights.
DECAY, OUTLIERS, OUTLIER_ENERGY, FREEDOM = 0.91, 8, 49.0, 5
#: Size of the matrices whose product is timed.
PRODUCT = 1536


@dataclass(frozen=True)
class Cost:
    """What a call took."""

    cpu: float
    wall: float
    peak: float


def main() -> None:
    """Print a row for each layer and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="", help=f"FILE:LAYER with commas between; real: {REAL}")
    parser.add_argument("--synthetic", default="", help="INPUTS:ROWS with commas between")
    parser.add_argument("--transformer", default="", help="HIDDEN:FFN:BLOCKS")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--density", type=float)
    parser.add_argument("--pattern")
    parser.add_argument("--granularity", default="channel")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--blocks", default="0", help="sizes of the minorant's blocks, with commas between")
    parser.add_argument("--effort", default="1")
    parser.add_argument("--engine", type=int, default=0, help="channels that the engine solves, too")
    parser.add_argument("--engine-time", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(machine())
    names = REAL if options.layers == "real" else options.layers
    for layer in chain(real_layers(names), synthetic_layers(options.synthetic), transformer(options.transformer)):
        problem = problem_of(layer, options)
        print(f"\n{layer.name}: {layer.out_features} x {layer.in_features}, {problem.label}")
        print(f"  float32 products: {speed(options.jobs):.0f} GFLOP/s on {options.jobs} threads")
        found: Solution | None = None
        for size in options.blocks.split(","):
            chosen = {"blocks": size, "effort": options.effort}
            with threadpool_limits(options.jobs):
                found, cost = timed(
                    lambda problem=problem, chosen=chosen: lb.solve(
                        problem, "batched", jobs=options.jobs, options={**chosen, "device": options.device}
                    )
                )
            total = found.totals()
            ratio = found.lower_bound / np.maximum(found.upper_bound, np.finfo(float).tiny)
            print(
                f"  batched, blocks {size}: lower/upper {total['lower_bound'] / total['upper_bound']:.3f} "
                f"(median row {np.median(ratio):.3f}); {cost.cpu:.1f} s of the processor, {cost.wall:.1f} s, "
                f"peak {cost.peak:.2f} GB"
            )
            if options.engine:
                beside_engine(problem, found, options)


def beside_engine(problem: Problem, found: Solution, options: argparse.Namespace) -> None:
    """The engine on some of the channels."""
    rows = np.unique(np.linspace(0, problem.layer.out_features - 1, options.engine).astype(int)).tolist()
    engine, cost = timed(
        lambda: lb.solve(problem, "native", channels=rows, time_limit=options.engine_time, jobs=options.jobs)
    )
    lower, upper = found.lower_bound[rows], found.upper_bound[rows]
    best = np.minimum(upper, engine.upper_bound)
    print(
        f"    engine on {len(rows)} channels: {cost.cpu:.1f} s of the processor; lower/best: engine "
        f"{engine.lower_bound.sum() / best.sum():.3f}, batched {lower.sum() / best.sum():.3f}; batched/engine: lower "
        f"{listed(lower / np.maximum(engine.lower_bound, np.finfo(float).tiny))}, upper "
        f"{listed(upper / np.maximum(engine.upper_bound, np.finfo(float).tiny))}"
    )


def listed(values: np.ndarray) -> str:
    """Numbers with three digits."""
    return " ".join(f"{v:.3f}" for v in values)


def timed(work) -> tuple[Solution, Cost]:  # type: ignore[no-untyped-def]
    """Call something; what it took, and the most memory that the process has had."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    taken = time.process_time() - cpu, time.perf_counter() - wall
    return result, Cost(*taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)


def speed(jobs: int) -> float:
    """GFLOP/s of a float32 product."""
    matrix = np.random.default_rng(0).normal(size=(PRODUCT, PRODUCT)).astype(np.float32)
    best = np.inf
    with threadpool_limits(jobs):
        for _ in range(5):
            begin = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - begin)
    return 2 * PRODUCT**3 / best / 1e9


def real_layers(names: str) -> Iterator[lb.Layer]:
    """Layers of the reference files."""
    for name in filter(None, names.split(",")):
        file, _, end = name.partition(":")
        layers = lb.load_layers(DATA / f"{file}_layers.safetensors")
        yield next(layer for key, layer in layers.items() if key.endswith(end))


def synthetic_layers(sizes: str) -> Iterator[lb.Layer]:
    """Random layers of given sizes."""
    for size in filter(None, sizes.split(",")):
        n, rows = (int(part) for part in size.split(":"))
        yield synthetic_layer(n, rows)


def transformer(sizes: str) -> Iterator[lb.Layer]:
    """The layers of a transformer with random weights."""
    if not sizes:
        return
    hidden, wide, blocks = (int(part) for part in sizes.split(":"))
    for block in range(blocks):
        for k, (n, parts) in enumerate(
            (
                (hidden, {"q": hidden, "k": hidden // 3, "v": hidden // 3}),
                (hidden, {"o": hidden}),
                (hidden, {"gate": wide, "up": wide}),
                (wide, {"down": hidden}),
            )
        ):
            first: lb.Layer | None = None
            for part, (name, rows) in enumerate(parts.items()):
                found = synthetic_layer(n, rows, 100 * block + 10 * k + part, first)
                first = first or found
                found.name = f"{block}.{name}"
                yield found


def synthetic_layer(n: int, rows: int, seed: int = 0, sharing: lb.Layer | None = None) -> lb.Layer:
    """See the module; with the Gram matrix of another layer where one is given."""
    rng = np.random.default_rng(seed)
    weight = (0.02 * rng.standard_t(FREEDOM, size=(rows, n))).astype(np.float32)
    if sharing is not None:
        return lb.Layer(weight, sharing.validated_gram)
    root = np.arange(1, n + 1) ** (-DECAY / 2)
    inputs = rng.normal(size=(n, n)).astype(np.float32) * root.astype(np.float32)
    inputs[rng.choice(n, OUTLIERS, replace=False)] *= np.sqrt(OUTLIER_ENERGY)
    gram = (inputs @ inputs.T).astype(np.float64)
    del inputs
    gram += gram.T
    gram *= 0.5 / n
    gram[np.diag_indices(n)] += 1e-2 * float(np.mean(np.diag(gram)))
    return lb.Layer(weight, gram, f"synthetic {rows} x {n}")


def problem_of(layer: lb.Layer, options: argparse.Namespace) -> Problem:
    """What the options ask for."""
    if options.density is not None or options.pattern is not None:
        return lb.pruning_problem(layer, density=options.density, pattern=options.pattern or "unstructured")
    granularity = int(options.granularity) if options.granularity.isdigit() else options.granularity
    return lb.quantization_problem(layer, options.bits, granularity=granularity, symmetric=not options.asymmetric)


if __name__ == "__main__":
    main()
