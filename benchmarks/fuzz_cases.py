"""Random and degenerate layers and problems of a few inputs, each from a seed and a number."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

import layerbounds as lb
from benchmarks.fuzz_layers import random_layer
from layerbounds.arrays import Float
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.problems.joint import grid_of_weights

#: Most points of a grid that are enumerated, usually and now and then.
POINTS, MANY_POINTS = 1 << 11, 1 << 15

Generator = np.random.Generator


@dataclass(frozen=True, eq=False)
class Case:
    """A problem with all its channels, and how to solve it.

    Attributes
    ----------
    kind : str
        Row of the table.
    traits : tuple of str
        What is special about the layer.
    problem : Problem
    pattern : str
        Of a pruning or joint problem; "" for others.
    options : dict
        For `layerbounds.solve`.
    """

    kind: str
    traits: tuple[str, ...]
    problem: lb.QuantizationProblem | lb.PruningProblem | lb.FreeCodebookProblem | lb.FreeScaleProblem | lb.JointProblem
    pattern: str
    options: dict[str, object]

    def describe(self) -> str:
        """One line."""
        layer = self.problem.layer
        return f"{self.problem.label}; n = {layer.in_features}; {', '.join(self.traits)}; {self.options}"


def _quantized(rng: Generator, channels: int) -> Case:
    name = str(rng.choice(["uniform", "uniform", "codebook", "given scales"]))
    codes: str | Float = ""
    if name == "codebook":
        codes = str(rng.choice(["binary", "ternary", "nf4", "fp4", "mxfp4", "own"]))
        kind = f"codebook {codes}"
        if codes == "own":
            codes = np.sort(rng.normal(size=int(rng.integers(1, 6))))
        levels = len(codes) if isinstance(codes, np.ndarray) else {"binary": 2, "ternary": 3, "nf4": 16}.get(codes, 15)
    else:
        bits = int(rng.integers(1 if name == "uniform" else 2, 5))
        levels, kind = 2**bits, f"{bits}-bit {name}"
    n = _size(rng, levels)
    layer, traits = random_layer(rng, n, channels)
    bias = _bias(rng, traits)
    granularity = rng.choice(["channel", "channel", "tensor", "group"])
    size: object = int(rng.integers(1, n + 1)) if granularity == "group" else str(granularity)
    if name == "codebook":
        # Seven inputs of a scale of 32 are one group.
        grid = lb.codebook_grid(layer.weight, codes, None if isinstance(codes, str) and codes == "mxfp4" else size)  # type: ignore[arg-type]
        problem = lb.quantization_problem(layer, grid=grid, bias=bias)
    elif name == "given scales":
        groups = int(rng.integers(1, n + 1)) if granularity == "group" else n
        count = -(-n // groups)
        peak = np.max(np.abs(layer.matrix), axis=1, keepdims=True)
        base = np.where(peak > 0, peak, 1.0) / levels
        scale = base * 10.0 ** rng.uniform(-1.5, 1.0, size=(channels, count))
        problem = lb.quantization_problem(layer, bits, scale=scale, granularity=groups, bias=bias)
    else:
        how = str(rng.choice(["mse", "mse", "minmax", "gram"]))
        symmetric = bool(rng.random() < 0.5)
        kind += "" if symmetric or bits == 1 else ", asymmetric"
        problem = lb.quantization_problem(
            layer, bits, symmetric=symmetric, granularity=size, range=how, bias=bias  # type: ignore[arg-type]
        )  # fmt: skip
    if rng.random() < 0.2:
        traits.append("offsets")
        problem = _with_offsets(problem, rng)
    choice = rng.random()
    if choice < 0.08:
        traits.append("target on the grid")
        problem = _moved_target(problem, rng, 0.0)
    elif choice < 0.14:
        traits.append("target halfway between levels")
        problem = _moved_target(problem, rng, 0.5)
    elif choice < 0.22:
        traits.append("box active")
        problem = dataclasses.replace(problem, grid=dataclasses.replace(problem.grid, scale=0.05 * problem.grid.scale))
    return Case(kind, tuple(traits), problem, "", {})


def _with_offsets(problem: lb.QuantizationProblem, rng: Generator) -> lb.QuantizationProblem:
    """The grid with something added to the levels of some scale groups, and some groups with that alone."""
    grid = problem.grid
    size = float(np.max(np.abs(problem.layer.matrix))) or 1.0
    offset = rng.choice([0.0, 0.1, 1.0, 30.0], grid.scale.shape) * size * rng.normal(size=grid.scale.shape)
    scale = np.where(rng.random(grid.scale.shape) < rng.choice([0.0, 0.3, 0.9]), 0.0, grid.scale)
    # Levels that float64 cannot tell apart are refused.
    offset[(np.abs(offset) > 1e12 * np.abs(scale)) & (scale != 0.0)] = 0.0
    group = rng.integers(0, grid.scale.shape[1], grid.in_features)
    if rng.random() < 0.3:
        group = grid.group
    return lb.QuantizationProblem(
        problem.layer,
        lb.Grid(grid.codes, scale, grid.zero_point, grid.in_features, label=grid.label, group=group, offset=offset),
    )


def _moved_target(problem: lb.QuantizationProblem, rng: Generator, part: float) -> lb.QuantizationProblem:
    """The same grid, and targets at some of its points or between two."""
    layer, grid = problem.layer, problem.grid
    target = np.empty_like(layer.target)
    for c in range(layer.out_features):
        levels = grid.levels(c)
        index = np.arange(len(levels))
        low = rng.integers(0, max(levels.shape[1] - 1, 1), size=len(levels))
        high = np.minimum(low + 1, levels.shape[1] - 1)
        target[c] = (1.0 - part) * levels[index, low] + part * levels[index, high]
    moved = lb.Layer(
        layer.weight, layer.gram, target=target, constant=layer.constant, input_mean=layer.input_mean, bias=layer.bias
    )
    return lb.QuantizationProblem(moved, grid)


def _free_codebook(rng: Generator, channels: int) -> Case:
    count = int(rng.integers(1, 6))
    layer, traits = random_layer(rng, int(rng.integers(1, 7)), channels)
    bias = _bias(rng, traits)
    problem = lb.FreeCodebookProblem(apply_bias(layer, bias), count)
    return Case("free codebook", tuple(traits), problem, "", {})


def _free_scale(rng: Generator, channels: int) -> Case:
    kinds: dict[str, dict[str, object]] = {
        "binary": {"bits": 1},
        "2-bit": {"bits": 2},
        "2-bit, both signs": {"bits": 2, "signed_scale": True},
        "2-bit, zero points": {"bits": 2, "zero_point": "free"},
        "2-bit, real zero points": {"bits": 2, "zero_point": "real"},
        "ternary": {"codebook": "ternary"},
        "own codes": {"codebook": np.sort(rng.normal(size=3))},
    }
    layer, traits = random_layer(rng, int(rng.integers(1, 5)), channels)
    bias, name = _bias(rng, traits), str(rng.choice(list(kinds)))
    problem = lb.quantization_problem(layer, scale="free", bias=bias, **kinds[name])  # type: ignore[arg-type]
    assert isinstance(problem, lb.FreeScaleProblem)
    if problem.zero == "real" and any(np.isfinite(problem.allowed(c).limit) for c in range(channels)):
        # The best shift of weights of limited size has no closed form.
        name = "2-bit"
        problem = lb.quantization_problem(layer, 2, scale="free", bias=bias)
        assert isinstance(problem, lb.FreeScaleProblem)
    return Case(f"free scale, {name}", tuple(traits), problem, "", {})


def _pruned(rng: Generator, channels: int) -> Case:
    n = _size(rng, 2)
    layer, traits = random_layer(rng, n, channels)
    refit = bool(rng.random() < 0.6)
    name, pattern, chosen = _pattern(rng, n)
    problem = lb.pruning_problem(layer, pattern=pattern, refit=refit, bias=_bias(rng, traits), **chosen)  # type: ignore[arg-type]
    return Case(f"{'refit' if refit else 'mask only'}, {name}", tuple(traits), problem, pattern, {})


def _shared(rng: Generator, channels: int) -> Case:
    """One mask for several rows: units of all kinds, and the patterns of single rows."""
    n = _size(rng, 2)
    layer, traits = random_layer(rng, n, channels)
    if channels > 1 and rng.random() < 0.1 and layer.groups == 1:
        traits.append("equal rows")
        layer = lb.Layer(np.tile(layer.matrix[:1], (channels, 1)), layer.gram[0], input_mean=layer.input_mean)
    if rng.random() < 0.1:
        traits.append("unequal rows")
        factor = 10.0 ** rng.uniform(-8.0, 8.0, (channels, 1))
        layer = lb.Layer(layer.matrix * factor, layer.gram, input_mean=layer.input_mean)
    refit = bool(rng.random() < 0.6)
    share: object = "all" if rng.random() < 0.3 else int(rng.integers(2, 8))
    name = str(rng.choice(["column", "head", "units", "unstructured", "N:M", "block"]))
    units, chosen = np.arange(n), dict[str, object]()
    if name in ("unstructured", "N:M", "block"):
        while name != (drawn := _pattern(rng, n))[0]:
            pass
        _, pattern, chosen = drawn
        given: object = pattern
    else:
        size = int(rng.integers(1, n + 1))
        if name == "head":
            units = units // size
        elif name == "units":
            units = np.unique(rng.integers(0, size, n), return_inverse=True)[1]
        pattern = "units:" + ",".join(map(str, units.tolist()))
        given = {"column": "column", "head": f"head:{size}", "units": units}[name]
        chosen = {"k": int(rng.integers(0, units.max() + 2))}
    problem = lb.pruning_problem(
        layer, pattern=given, share=share, refit=refit, bias=_bias(rng, traits), **chosen  # type: ignore[arg-type]
    )  # fmt: skip
    return Case(f"shared {'refit' if refit else 'mask'}, {name}", tuple(traits), problem, pattern, {})


def _pattern(rng: Generator, n: int) -> tuple[str, str, dict[str, object]]:
    """A pattern's kind, its name, and how many inputs it keeps where it does not say so itself."""
    name = str(rng.choice(["unstructured", "unstructured", "N:M", "block"]))
    chosen: dict[str, object] = {"k": int(rng.integers(0, n + 1))}
    pattern = name
    if name == "N:M":
        size = int(rng.integers(2, 6))
        pattern, chosen = f"{rng.integers(1, size)}:{size}", {}
    elif name == "block":
        pattern = f"block:{rng.integers(1, n + 1)}"
    return name, pattern, chosen


def _joint(rng: Generator, channels: int) -> Case:
    case = _quantized(rng, channels)
    assert isinstance(case.problem, lb.QuantizationProblem)
    layer, grid, kind = case.problem.layer, case.problem.grid, case.kind
    if rng.random() < 0.15:
        # Weights that a quantization chose, or the dense ones.
        weights = layer.matrix
        if rng.random() < 0.5:
            weights = np.stack([case.problem.allowed(c).nearest(row) for c, row in enumerate(layer.target)])
        grid, kind = grid_of_weights(weights), "weights as given"
    name, pattern, chosen = _pattern(rng, layer.in_features)
    pruned = lb.pruning_problem(layer, pattern=pattern, **chosen)  # type: ignore[arg-type]
    problem = lb.JointProblem(layer, grid, pruned.pattern, pruned.kept)
    return Case(f"joint, {kind.partition(',')[0].partition(' ')[0]}, {name}", case.traits, problem, pattern, {})


def _bias(rng: Generator, traits: list[str]) -> Bias:
    if rng.random() < 0.15:
        traits.append("bias re-fitted")
        return "refit"
    return "keep"


def _size(rng: Generator, levels: int) -> int:
    """A number of inputs whose points can be enumerated."""
    points = MANY_POINTS if rng.random() < 0.04 else POINTS
    most = max(int(np.log(points) / np.log(max(levels, 2)) + 1e-9), 1)
    return int(rng.integers(1, min(most, 8 if rng.random() < 0.1 else 6) + 1))


def make_case(seed: int, number: int) -> Case:
    """The case of a number in the run of a seed."""
    rng = np.random.default_rng([seed, number])
    channels = int(rng.choice([1, 24, 48]))
    draw = rng.random()
    if draw < 0.12:
        case = (_free_codebook if draw < 0.06 else _free_scale)(rng, channels)
    else:
        kind = _quantized if draw < 0.47 else _pruned if draw < 0.8 else _joint if draw < 0.93 else _shared
        case = kind(rng, channels)
    options: dict[str, object] = {"jobs": int(rng.integers(1, 3)), "seed": int(rng.integers(100))}
    if rng.random() < 0.1:
        options["gap"] = float(rng.choice([1e-3, 0.1, 0.5]))
    if rng.random() < 0.1:
        layer = case.problem.layer
        options["warm_start"] = layer.matrix + rng.normal(size=layer.matrix.shape) * np.abs(layer.matrix).max()
    return dataclasses.replace(case, options=options)
