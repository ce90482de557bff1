"""The batched backend: valid and useful intervals for all rows, on every kind of grid and layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import correlated

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import is_minorant
from layerbounds.kernels.arithmetic import CPU, Arithmetic
from layerbounds.proofs import BoundKind
from layerbounds.solvers.batched import backend, levels
from layerbounds.solvers.batched.lattice import level_rows
from layerbounds.solvers.batched.points import find_points, penalty
from layerbounds.solvers.batched.preparation import prepare_gram

#: Grids and sizes of blocks.
KINDS: list[Any] = [
    ({"bits": 1}, 0),
    ({"bits": 3}, 4),
    ({"bits": 3, "granularity": 4}, 4),
    ({"codebook": "nf4"}, 0),
    *(
        pytest.param(how, blocks, marks=pytest.mark.slow)
        for how in ({"bits": 4, "symmetric": False}, {"bits": 3, "granularity": "tensor"}, {"codebook": "nf4"})
        for blocks in (0, 4)
    ),
]


def some_layer(rng: np.random.Generator, rows: int = 9, n: int = 12) -> lb.Layer:
    return lb.Layer(rng.normal(size=(rows, n)), correlated(rng, n))


def agrees(solution: lb.Solution, other: lb.Solution) -> bool:
    """Whether two sets of intervals can both be right."""
    return bool(np.all(solution.lower_bound <= other.upper_bound) and np.all(other.lower_bound <= solution.upper_bound))


@pytest.mark.parametrize(("how", "blocks"), KINDS)
def test_the_optimum_lies_in_every_interval(rng: np.random.Generator, how: dict[str, Any], blocks: int) -> None:
    problem = lb.quantization_problem(some_layer(rng), **how)
    batched = lb.solve(problem, "batched", options={"blocks": blocks})
    exact = lb.solve(problem, "native", time_limit=20.0)
    assert all(status == lb.Status.OPTIMAL for status in exact.status)
    assert agrees(batched, exact)
    assert np.all(lb.evaluate(problem, batched.weights).feasible)
    assert batched.lower_bound.sum() > 0.15 * exact.upper_bound.sum()
    assert batched.upper_bound.sum() <= 1.02 * exact.upper_bound.sum()
    assert all(kind == BoundKind.DUAL for kind in batched.bound_kind)


def test_blocks_prove_more_than_a_diagonal(rng: np.random.Generator) -> None:
    problem = lb.quantization_problem(some_layer(rng, rows=20, n=16), 3)
    single, several = (lb.solve(problem, "batched", options={"blocks": size}) for size in (0, 4))
    assert np.all(several.lower_bound >= single.lower_bound * (1 - 1e-9))
    assert several.lower_bound.sum() > 1.05 * single.lower_bound.sum()


def test_the_threads_do_not_matter(rng: np.random.Generator) -> None:
    problem = lb.quantization_problem(some_layer(rng, rows=40), 3)
    one, two = (lb.solve(problem, "batched", jobs=jobs, options={"blocks": 3}) for jobs in (1, 2))
    np.testing.assert_array_equal(one.weights, two.weights)
    np.testing.assert_allclose(one.lower_bound, two.lower_bound, rtol=1e-3)


def test_warm_starts_are_improved_on(rng: np.random.Generator) -> None:
    problem = lb.quantization_problem(some_layer(rng), 3)
    best = lb.solve(problem, "native", time_limit=20.0)
    again = lb.solve(problem, "batched", warm_start=best.weights, options={"effort": 0.0})
    assert np.all(again.upper_bound <= best.upper_bound * (1 + 1e-9))


def test_mirrored_codes(rng: np.random.Generator) -> None:
    """A negative scale mirrors a codebook that is not symmetric, so that rows have lists of codes of their own."""
    layer = some_layer(rng, rows=4, n=8)
    scale = np.array([[0.5, -0.5], [0.4, 0.4], [-0.3, 0.3], [-0.2, -0.2]])
    grid = lb.Grid(np.array([-2.0, -0.5, 0.0, 3.0]), scale, np.zeros((4, 2)), 8)
    problem = lb.quantization_problem(layer, grid=grid)
    batched, exact = lb.solve(problem, "batched", options={"blocks": 2}), lb.solve(problem, "native")
    assert agrees(batched, exact)
    assert np.all(batched.lower_bound > 0)


def test_dead_inputs_and_groups(rng: np.random.Generator) -> None:
    gram = np.stack([correlated(rng, 6), 3.0 * correlated(rng, 6)])
    gram[0, [1, 4]] = 0.0
    gram[0][:, [1, 4]] = 0.0
    layer = lb.Layer(rng.normal(size=(6, 6)), gram, constant=np.arange(6.0))
    problem = lb.quantization_problem(layer, 2)
    batched, exact = lb.solve(problem, "batched", channels=[5, 0, 2]), lb.solve(problem, channels=[5, 0, 2])
    assert agrees(batched, exact)
    assert np.all(batched.lower_bound >= [5.0, 0.0, 2.0])
    assert np.all(lb.evaluate(problem, batched.weights, channels=[5, 0, 2]).feasible)


@pytest.mark.parametrize("scale", [1.0, 1e-120, 1e100])
@pytest.mark.parametrize(("n", "rank"), [(1, 1), (5, 5), (5, 2)])
def test_scales_and_ranks(rng: np.random.Generator, scale: float, n: int, rank: int) -> None:
    layer = lb.Layer(rng.normal(size=(4, n)), scale * correlated(rng, n, rank))
    for how in ({"bits": 2}, {"codebook": "nf4"}):
        problem = lb.quantization_problem(layer, **how)  # type: ignore[arg-type]
        batched = lb.solve(problem, "batched", options={"blocks": 2})
        assert agrees(batched, lb.solve(problem, "native"))


def test_rows_of_very_different_size(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(3, 4)) * np.array([[1e-80], [1.0], [1e80]])
    problem = lb.quantization_problem(lb.Layer(weight, np.eye(4) + 0.5), 2)
    batched = lb.solve(problem, "batched", options={"blocks": 2})
    assert agrees(batched, lb.solve(problem, "native"))
    assert np.all(batched.lower_bound > 0.5 * batched.upper_bound)


def test_nothing_to_do() -> None:
    zero = lb.solve(lb.quantization_problem(lb.Layer(np.zeros((3, 4)), np.eye(4) + 0.9), 2), "batched")
    dead = lb.solve(lb.quantization_problem(lb.Layer(np.ones((3, 4)), np.zeros((4, 4))), 2), "batched")
    for solution in (zero, dead):
        assert np.all(solution.upper_bound == 0)
        assert all(status == lb.Status.OPTIMAL for status in solution.status)


def test_single_precision_breaks_down(rng: np.random.Generator) -> None:
    """The minorant of a nearly singular matrix is found nevertheless, and bounds are those of the matrix itself."""
    basis = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    gram = (basis * np.geomspace(1.0, 1e-7, 24)) @ basis.T
    layer = lb.Layer(rng.normal(size=(6, 24)), 0.5 * (gram + gram.T))
    problem = lb.quantization_problem(layer, 3)
    batched = lb.solve(problem, "batched")
    assert agrees(batched, lb.solve(problem, "native", time_limit=1.0))
    assert np.sum(batched.lower_bound > 0) >= 4


def test_the_bound_of_a_point_is_what_certification_finds(rng: np.random.Generator) -> None:
    problem = lb.quantization_problem(some_layer(rng, rows=5, n=10), 3)
    gram, targets = problem.layer.gram[0], problem.layer.target
    rows = level_rows([problem.allowed(r) for r in range(5)], targets)
    d = 0.9 / np.diag(np.linalg.inv(gram)) / 10
    assert is_minorant(gram, d)
    setting = penalty(gram, d, CPU)
    assert setting is not None
    points = find_points(rows, d, setting, CPU, 200)
    e = points.e.astype(np.float64) * rows.unit[:, None]
    matrix = gram - np.diag(d)
    for r in range(5):
        step = problem.allowed(r).values - targets[r][:, None]
        slope = matrix @ e[r]
        value = np.sum((2 * slope[:, None] * step + d[:, None] * step**2).min(axis=1)) - e[r] @ slope
        assert points.value[r] * rows.unit[r] ** 2 == pytest.approx(value, rel=1e-2)


class Counting:
    """Another place for single precision, as an accelerator is."""

    name = "elsewhere"

    def __init__(self) -> None:
        self.products = 0

    def put(self, array: Float) -> Any:
        return CPU.put(array)

    def get(self, array: Any) -> Float:
        return CPU.get(array)

    def inverse(self, matrix: Any) -> Any | None:
        return CPU.inverse(matrix)

    def product(self, left: Any, right: Any) -> Any:
        self.products += 1
        return CPU.product(left, right)


def test_products_are_computed_where_the_user_wants(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Counting()

    def arithmetic(device: str) -> Arithmetic:
        assert device == "cuda"
        return there

    monkeypatch.setattr(backend, "arithmetic_on", arithmetic)
    problem = lb.quantization_problem(some_layer(rng), 3)
    moved = lb.solve(problem, "batched", options={"device": "cuda"})
    assert there.products > 10
    assert np.all(moved.lower_bound > 0)


def test_torch_gives_the_same_intervals(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from layerbounds.solvers.batched.torch_arithmetic import TorchArithmetic

    problem = lb.quantization_problem(some_layer(rng, rows=20, n=30), 3)
    here = lb.solve(problem, "batched", options={"blocks": 3})
    monkeypatch.setattr(backend, "arithmetic_on", lambda device: TorchArithmetic("cpu"))
    there = lb.solve(problem, "batched", options={"blocks": 3})
    assert agrees(here, there)
    assert there.upper_bound.sum() == pytest.approx(here.upper_bound.sum(), rel=0.05)
    assert there.lower_bound.sum() == pytest.approx(here.lower_bound.sum(), rel=0.15)


def test_torch_inverts_and_multiplies(rng: np.random.Generator) -> None:
    pytest.importorskip("torch")
    from layerbounds.solvers.batched.torch_arithmetic import TorchArithmetic

    place, gram = TorchArithmetic("cpu"), correlated(rng, 20)
    inverse = place.inverse(place.put(gram))
    np.testing.assert_allclose(place.get(inverse) @ gram, np.eye(20), atol=1e-2)
    left = rng.normal(size=(3, 20)).astype(np.float32)
    np.testing.assert_allclose(place.product(left, place.put(gram)), left @ gram, rtol=1e-4, atol=1e-4)
    assert place.inverse(place.put(-gram)) is None


def test_a_device_that_is_not_there() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    problem = lb.quantization_problem(lb.Layer(np.ones((1, 2)), np.eye(2)), 2)
    with pytest.raises(lb.LayerboundsError, match="device is 'cuda', which PyTorch does not find here"):
        lb.solve(problem, "batched", options={"device": "cuda"})


def test_chunks_of_rows_have_the_bounds_of_all(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = lb.quantization_problem(some_layer(rng, rows=12), 3)
    whole = lb.solve(problem, "batched", options={"blocks": 3})
    monkeypatch.setattr(levels, "STATE_BYTES", 1)
    parts = lb.solve(problem, "batched", options={"blocks": 3})
    np.testing.assert_allclose(parts.lower_bound, whole.lower_bound, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "least"), [("minilm", "attention.output.dense", 0.5), ("resnet20", "conv2", 0.7)]
)
def test_real_layers(reference_data: Path, file: str, name: str, least: float) -> None:
    layers = lb.load_layers(reference_data / f"{file}_layers.safetensors")
    layer = next(layer for key, layer in layers.items() if key.endswith(name))
    problem = lb.quantization_problem(layer, 3)
    batched = lb.solve(problem, "batched", channels=range(24))
    engine = lb.solve(problem, "native", channels=[0, 1], time_limit=5.0)
    assert batched.lower_bound.sum() >= least * batched.upper_bound.sum()
    assert np.all(batched.lower_bound[:2] <= engine.upper_bound)
    assert np.all(engine.lower_bound <= batched.upper_bound[:2])
    assert np.all(batched.upper_bound[:2] <= 1.1 * engine.upper_bound)


@pytest.mark.parametrize("refit", [True, False])
def test_a_row_that_overflows_leaves_the_others_alone(rng: np.random.Generator, refit: bool) -> None:
    layer = some_layer(rng, rows=5, n=8)
    weight = layer.matrix.copy()
    weight[2] *= 1e200
    solution = lb.solve(lb.pruning_problem(lb.Layer(weight, layer.gram), pattern="2:4", refit=refit), "batched")
    others = np.arange(5) != 2
    assert np.all(solution.lower_bound[others] > 0)
    assert np.all(np.isfinite(solution.upper_bound[others]))
    assert solution.lower_bound[2] == 0.0
    assert not np.isnan(solution.upper_bound[2])


def test_a_preparation_that_was_cut_short_is_not_kept(rng: np.random.Generator) -> None:
    gram = correlated(rng, 40)
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 1

    short = prepare_gram(gram, CPU, 1, stop)
    whole = prepare_gram(gram, CPU, 1, lambda: False)
    assert short is not None
    assert whole is not None
    assert whole.d.sum() > 1.001 * short.d.sum()
    assert prepare_gram(gram, CPU, 1, lambda: False) is whole
