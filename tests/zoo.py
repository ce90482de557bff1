"""Small problems with known optima, for the conformance of backends: grids × patterns × degenerate inputs.

Every family adds its own examples.
The optima are found by trying everything: each point of the grid, each allowed choice of kept inputs, or each division
into blocks of equal weights, with an exact least-squares refit, in extended precision where that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice

import numpy as np
from scipy.optimize import nnls

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task, make_task
from layerbounds.search.families import Family, families


@dataclass(frozen=True, eq=False)
class Case:
    """A problem of one output channel, or of rows that share something."""

    name: str
    problem: Problem
    singular: bool

    @cached_property
    def optimum(self) -> float:
        """The smallest error that the weights can have."""
        return brute_force(self.problem)


#: Pieces whose errors are computed together.
CHUNK = 4096


def _least_error(task: Task, weights: Sequence[Float]) -> float:
    """The smallest error of some weights."""
    deviation = np.stack([np.atleast_2d(w) for w in weights]).astype(np.longdouble) - task.targets
    other = deviation if task.metric is None else task.metric.astype(np.longdouble) @ deviation
    return max(float(np.sum((deviation @ task.gram.astype(np.longdouble)) * other, axis=(1, 2)).min()), 0.0)


def brute_force(problem: Problem) -> float:
    """The smallest error of the first set of rows, the constant included: every piece of the allowed set is tried."""
    task = make_task(problem, problem.sets(range(problem.layer.out_features))[0], None, None)
    pieces = (_best_of_piece(task, *piece) for piece in task.allowed.pieces())
    best = min(_least_error(task, chunk) for chunk in iter(lambda: list(islice(pieces, CHUNK)), []))
    return best + task.constant


def _best_of_piece(task: Task, offset: Float, directions: Float, nonnegative: bool) -> Float:
    """The weights of least error in one piece of the allowed set."""
    if not directions.shape[-1]:
        return offset
    # Of one row, or of several that share the directions' coefficients.
    pulled = np.einsum("ij,...jk->...ik", task.gram, directions)
    if task.metric is not None:
        pulled = np.tensordot(task.metric, pulled.reshape(-1, *pulled.shape[-2:]), axes=1).reshape(pulled.shape)
    columns = pulled.reshape(-1, directions.shape[-1])
    matrix = directions.reshape(columns.shape).T @ columns
    right = columns.T @ (task.target - offset).ravel()
    return np.asarray(offset + directions @ _least_squares(matrix, right, nonnegative))


def _least_squares(matrix: Float, right: Float, nonnegative: bool) -> Float:
    """Minimiser of xᵀMx − 2rᵀx."""
    if matrix.shape == (1, 1):
        ratio = right / matrix[0, 0] if matrix[0, 0] > 0 else np.zeros(1)
        return np.maximum(ratio, 0.0) if nonnegative else ratio
    if not nonnegative:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])
    values, vectors = np.linalg.eigh(matrix)
    kept = values > 1e-14 * values[-1]
    root = np.sqrt(values[kept])
    rows = root[:, None] * vectors[:, kept].T
    return np.asarray(nnls(rows, vectors[:, kept].T @ right / root)[0])


def _correlated(rng: np.random.Generator, n: int) -> Float:
    x = rng.normal(size=(5 * n, n)) + 0.8 * rng.normal(size=(5 * n, 1))
    return np.asarray(x.T @ x / len(x))


def layers() -> dict[str, lb.Layer]:
    """One channel each, but for layers of rows; the names say what is special."""
    rng = np.random.default_rng(7)
    six, weight = _correlated(rng, 6), rng.normal(size=(1, 6))
    dead = six.copy()
    dead[[1, 4]] = 0.0
    dead[:, [1, 4]] = 0.0
    twins = six.copy()
    twins[5], twins[:, 5] = twins[0], twins[:, 0]
    twins[5, 5] = twins[0, 0]
    low_rank = rng.normal(size=(3, 6))
    spread = np.diag(10.0 ** np.linspace(-3, 3, 6))
    blend = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    hard = blend @ np.diag(10.0 ** np.linspace(-6, 1, 6)) @ blend.T
    x = rng.normal(size=(20, 6)) + rng.normal(size=(20, 1))
    shifted = lb.Layer.from_activations(weight, x, compressed_inputs=x + 0.3 * rng.normal(size=x.shape))
    three_rows, nine_rows = rng.normal(size=(3, 6)), rng.normal(size=(9, 6))
    moved = lb.Layer.from_activations(three_rows, x, compressed_inputs=x + 0.3 * rng.normal(size=x.shape))
    return {
        "plain": lb.Layer(weight, six, "plain"),
        "diagonal": lb.Layer(weight, np.diag(rng.uniform(0.5, 2.0, 6)), "diagonal"),
        "dead inputs": lb.Layer(weight, dead, "dead inputs"),
        "all dead": lb.Layer(weight, np.zeros((6, 6)), "all dead"),
        "twins": lb.Layer(weight, twins, "twins"),
        "rank 3": lb.Layer(weight, low_rank.T @ low_rank, "rank 3"),
        "unequal inputs": lb.Layer(weight, spread @ six @ spread, "unequal inputs"),
        "ill-conditioned": lb.Layer(weight, 0.5 * (hard + hard.T), "ill-conditioned"),
        "tiny": lb.Layer(1e-6 * weight, 1e-6 * six, "tiny"),
        "huge": lb.Layer(1e6 * weight, 1e6 * six, "huge"),
        "zero weights": lb.Layer(np.zeros((1, 6)), six, "zero weights"),
        "other inputs": shifted,
        "single": lb.Layer(weight[:, :1], six[:1, :1], "single"),
        "three": lb.Layer(weight[:, :3], six[:3, :3], "three"),
        "three rows": lb.Layer(three_rows, six, "three rows"),
        "nine rows": lb.Layer(nine_rows, six, "nine rows"),
        "equal rows": lb.Layer(np.tile(weight, (3, 1)), six, "equal rows"),
        "unequal rows": lb.Layer(three_rows * np.array([[1e-3], [1.0], [1e3]]), six, "unequal rows"),
        "zero rows": lb.Layer(0.0 * three_rows, six, "zero rows"),
        "rows of other inputs": moved,
        "rows with dead inputs": lb.Layer(three_rows, dead, "rows with dead inputs"),
        "rows of rank 3": lb.Layer(three_rows, low_rank.T @ low_rank, "rows of rank 3"),
        "rows with twins": lb.Layer(three_rows, twins, "rows with twins"),
        "huge rows": lb.Layer(1e6 * three_rows, 1e6 * six, "huge rows"),
    }


SINGULAR = {"twins", "rank 3", "all dead", "rows of rank 3", "rows with twins"}


def _codebook(name: str) -> Callable[[lb.Layer], Problem]:
    return lambda layer: lb.quantization_problem(layer, grid=lb.codebook_grid(layer.weight, name))


def _levels(*codes: float) -> Callable[[lb.Layer], Problem]:
    return lambda layer: lb.quantization_problem(layer, grid=lb.codebook_grid(layer.weight, np.array(codes)))


def _grid(
    codes: object, scale: object, zero_point: object = 0.0, offset: object = None
) -> Callable[[lb.Layer], lb.Grid]:
    """Scales and offsets of one channel, each for an equal share of the inputs."""

    def make(layer: lb.Layer) -> lb.Grid:
        steps = np.atleast_2d(scale)  # type: ignore[call-overload]
        more = None if offset is None else np.atleast_2d(offset)  # type: ignore[call-overload]
        return lb.Grid(codes, steps, zero_point, layer.in_features, offset=more)  # type: ignore[arg-type]

    return make


def _given(
    codes: object, scale: object, zero_point: object = 0.0, offset: object = None
) -> Callable[[lb.Layer], Problem]:
    make = _grid(codes, scale, zero_point, offset)
    return lambda layer: lb.quantization_problem(layer, grid=make(layer))


def _bits(bits: int, **how: object) -> Callable[[lb.Layer], Problem]:
    return lambda layer: lb.quantization_problem(layer, bits, **how)  # type: ignore[arg-type]


def _pruned(**how: object) -> Callable[[lb.Layer], Problem]:
    return lambda layer: lb.pruning_problem(layer, **how)  # type: ignore[arg-type]


def _filters(refit: bool, metric: bool) -> Callable[[lb.Layer], Problem]:
    def make(layer: lb.Layer) -> Problem:
        # Nothing is known of how errors that no weights repair are correlated.
        rows = layer.out_features if metric and not layer.constant.any() else 0
        spread = np.linspace(1.0, 2.0, rows)
        q = np.diag(spread**2) + 0.4 * np.outer(spread, spread) if rows else None
        return lb.pruning_problem(layer, k=2, pattern="filter", refit=refit, output_metric=q)

    return make


def _joint(bits: int | None = None, grid: object = None, **how: object) -> Callable[[lb.Layer], Problem]:
    return lambda layer: lb.joint_problem(layer, bits, grid=grid and grid(layer), **how)  # type: ignore[arg-type,operator]


def _example(family: Family, name: str) -> Callable[[lb.Layer], Problem]:
    return lambda layer: dict(family.examples(layer))[name]


def _problems() -> list[tuple[str, str, Callable[[lb.Layer], Problem]]]:
    two, three, ternary = _bits(2), _bits(3), _codebook("ternary")
    sparse = _pruned(k=2)
    coupled = [name for name in layers() if "rows" in name]
    wide = [name for name in layers() if name not in ("single", "three", *coupled)]
    rows = [
        ("plain", "1 bit", _bits(1)),
        ("plain", "2 bits, 2 inputs a scale", _bits(2, granularity=2)),
        ("plain", "2 bits asymmetric, 4 inputs a scale", _bits(2, symmetric=False, granularity=4)),
        ("plain", "3 bits asymmetric minmax", _bits(3, symmetric=False, range="minmax")),
        ("plain", "2 bits per tensor, given scale", _bits(2, scale=[0.4])),
        ("plain", "ternary", ternary),
        ("rank 3", "ternary", ternary),
        ("dead inputs", "ternary", ternary),
        ("plain", "uneven levels", _levels(-2.0, -0.3, 0.0, 0.1, 1.7)),
        ("plain", "half-integer levels", _levels(-1.5, -0.5, 0.5, 1.5)),
        ("plain", "one level", _levels(0.5)),
        ("plain", "negative scale", _given(range(-2, 2), -0.4)),
        ("dead inputs", "scales of both signs", _given(range(-2, 2), [-0.4, 0.5])),
        ("other inputs", "scales of both signs, zero points", _given(range(4), [-0.4, 0.4, -0.6], [[1, 2.5, 0.3]])),
        ("rank 3", "uneven levels, scales of both signs", _given([-2, -0.3, 0.1, 1.7], [-0.4, 0.6])),
        ("plain", "minima", _given(range(4), [0.4, 0.3], offset=[-0.7, -0.21])),
        ("plain", "scales of 0", _given(range(-2, 2), [0.4, 0.0, 0.4])),
        ("other inputs", "scales of 0, minima", _given(range(4), [0.0, 0.4, 0.0], offset=[0.3, -0.7, 0.0])),
        ("rank 3", "scales of 0, minima", _given(range(4), [0.3, 0.0], offset=[-0.7, 0.1])),
        ("dead inputs", "uneven levels, scales of 0", _given([-2, -0.3, 1.7], [0.0, -0.4, 0.6], offset=[0.2, 0, 0.1])),
        ("plain", "scales of 0 alone", _given(range(4), [0.0, 0.0], offset=[0.3, -0.2])),
        (
            "plain",
            "minima, 2:4 ragged",
            _joint(pattern="2:4", grid=_grid(range(4), [0.0, 0.4, 0.3], 0, [0.2, -0.7, 0])),
        ),
        ("rank 3", "scales of 0, keep two", _joint(k=2, grid=_grid(range(-2, 2), [0.4, 0.0, 0.4]))),
        ("three", "nf4", _codebook("nf4")),
        ("three", "fp4", _codebook("fp4")),
        ("three", "mxfp4", _codebook("mxfp4")),
        ("three", "4 bits", _bits(4)),
        ("single", "8 bits", _bits(8)),
        ("other inputs", "3 bits", three),
        ("rank 3", "3 bits", three),
        ("plain", "keep none", _pruned(k=0)),
        ("plain", "keep one", _pruned(k=1)),
        ("plain", "keep all", _pruned(k=6)),
        ("single", "keep one", _pruned(k=1)),
        ("plain", "density ½", _pruned(density=0.5)),
        ("plain", "2:4 ragged", _pruned(pattern="2:4")),
        ("plain", "1:3", _pruned(pattern="1:3")),
        ("dead inputs", "1:2", _pruned(pattern="1:2")),
        ("other inputs", "2:4 ragged", _pruned(pattern="2:4")),
        ("plain", "blocks of 2", _pruned(pattern="block:2", k=4)),
        ("plain", "blocks of 4, ragged", _pruned(pattern="block:4", k=4)),
        ("twins", "blocks of 3", _pruned(pattern="block:3", k=3)),
        ("plain", "mask 2:4", _pruned(pattern="2:4", refit=False)),
        ("plain", "mask of blocks", _pruned(pattern="block:2", k=4, refit=False)),
        ("rank 3", "mask", _pruned(k=3, refit=False)),
        ("other inputs", "mask", _pruned(k=3, refit=False)),
        ("dead inputs", "mask", _pruned(k=3, refit=False)),
        ("plain", "mask", _pruned(k=3, refit=False)),
        ("tiny", "mask", _pruned(k=3, refit=False)),
        ("plain", "2 bits, keep none", _joint(2, k=0)),
        ("plain", "2 bits, keep all", _joint(2, k=6)),
        ("single", "3 bits, keep one", _joint(3, k=1)),
        ("three", "nf4, 2:3", _joint(codebook="nf4", pattern="2:3")),
        ("plain", "3 bits asymmetric, 2:4 ragged", _joint(3, symmetric=False, pattern="2:4")),
        ("dead inputs", "2 bits, 1:2", _joint(2, pattern="1:2")),
        ("twins", "2 bits, blocks of 3", _joint(2, k=3, pattern="block:3")),
        ("rank 3", "3 bits, keep three", _joint(3, k=3)),
        ("rank 3", "real zero points, keep two", _joint(2, scale=[0.5], zero_point=[1.5], k=2)),
        ("other inputs", "2 bits, keep three", _joint(2, k=3)),
    ]
    for family in families().values():
        rows += [
            ("plain", f"example of {problem.family}: {name}", _example(family, name))
            for name, problem in family.examples(layers()["plain"])
        ]
    columns, masks = _pruned(k=2, pattern="column"), _pruned(k=2, pattern=[0, 1, 0, 2, 2, 2], refit=False)
    rows += [("three rows", f"{k} columns", _pruned(k=k, pattern="column")) for k in (0, 1, 6)]
    rows += [
        ("three rows", "units of 1 to 3", _pruned(k=2, pattern=[0, 1, 0, 2, 2, 2])),
        ("three rows", "heads of 4", _pruned(k=1, pattern="head:4")),
        ("three rows", "1:3 in two rows", _pruned(pattern="1:3", share=2)),
        ("nine rows", "2:4 in all rows", _pruned(pattern="2:4", share="all")),
        ("rows with dead inputs", "unstructured in all rows", _pruned(k=3, share="all")),
        ("nine rows", "mask of blocks in 3 rows", _pruned(k=4, pattern="block:2", share=3, refit=False)),
    ]
    filters = [_filters(refit, metric) for refit in (True, False) for metric in (True, False)]
    rows += [(name, f"two filters {i}", make) for name in coupled for i, make in enumerate(filters)]
    rows += [(name, "two columns", columns) for name in coupled]
    rows += [(name, "mask of two units", masks) for name in coupled]
    rows += [(name, "2 bits", two) for name in wide]
    rows += [(name, "keep two", sparse) for name in wide]
    rows += [(name, "1 bit, keep two", _joint(1, k=2)) for name in wide]
    return rows


@cache
def zoo() -> list[Case]:
    """All cases; built once."""
    by_name = layers()
    cases = []
    for name, rule, make in _problems():
        problem = make(by_name[name])
        cases.append(Case(f"{name}, {rule}", problem, name in SINGULAR))
    return cases
