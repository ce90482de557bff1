"""Grids as files hold them: something added to the levels of a group, groups with one level, a scale for each input."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.certificates.boxes import box_leaves
from layerbounds.certificates.dual import MINORANTS
from layerbounds.certify.interval import dual_bound
from layerbounds.exceptions import InputError
from layerbounds.layers.tensor_files import open_tensors
from layerbounds.methods.base import HEURISTICS
from layerbounds.problems.layer_bits import layer_bits
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import DualPoint
from layerbounds.search.families import root_dual
from layerbounds_verify.bounds import Minorant, prove
from layerbounds_verify.boxes import over_boxes


def by_definition(grid: lb.Grid, channel: int) -> list[list[float]]:
    """The distinct levels of each input, in float64 and in the order of the formula."""
    parts = zip(
        *(part[channel, grid.group].tolist() for part in (grid.scale, grid.zero_point, grid.offset)), strict=True
    )
    return [sorted({s * (c - z) + o for c in grid.codes.tolist()}) for s, z, o in parts]


def random_grid(rng: np.random.Generator, out: int, n: int, levels: int) -> lb.Grid:
    """Any codes, scales of both signs and of 0, zero points and offsets or none, groups in any order."""
    groups = int(rng.integers(1, n + 1))
    codes = np.arange(levels) - 2.0 if rng.random() < 0.6 else rng.normal(size=levels)
    scale = rng.choice([0.0, 0.3, 0.3, -0.5, 0.2] if rng.random() < 0.6 else [0.0, 0.3], (out, groups))
    zero = rng.choice([0.0, 0.0, 1.0, 0.37], (out, groups))
    offset = rng.choice([0.0, 0.1, -3.0, 0.77], (out, groups))
    return lb.Grid(codes, scale, zero, n, group=rng.integers(0, groups, n), offset=offset)


def random_layer(rng: np.random.Generator, out: int, n: int) -> lb.Layer:
    """Sometimes with fewer positions than inputs, or a dead one."""
    inputs = rng.normal(size=(int(rng.integers(1, 2 * n + 3)), n))
    inputs[:, 0] *= rng.random() > 0.2
    return lb.Layer.from_activations(rng.normal(size=(out, n)), inputs)


def least_error(layer: lb.Layer, lists: list[list[float]], channel: int, most: int | None = None) -> float:
    """The optimum by trying everything, of at most so many live weights other than zero."""
    live = layer.live(0)
    lists = [row if alive else row[:1] for row, alive in zip(lists, live, strict=True)]
    points = np.array(list(itertools.product(*lists)))[:, live]
    if most is not None:
        points = points[np.count_nonzero(points, axis=1) <= most]
    deviation = points - layer.target[channel, live]
    return float(np.einsum("ki,ij,kj->k", deviation, layer.gram[0][np.ix_(live, live)], deviation).min())


def check(problem: lb.QuantizationProblem | lb.JointProblem, backend: str, best: Float) -> None:
    """A valid interval, closed by the native search, of weights that are allowed."""
    solution = lb.solve(problem, backend, time_limit=10.0, jobs=1)
    slack = 1e-10 * (1.0 + best)
    assert np.all(solution.lower_bound <= best + slack) and np.all(solution.upper_bound >= best - slack)
    assert lb.evaluate(problem, solution.weights).feasible.all()
    if backend == "native":
        assert set(solution.status) == {"optimal"}


@pytest.mark.parametrize("seed", range(20))
def test_levels_are_the_formula_and_the_lattice_is_near_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = random_grid(rng, 2, 7, 4)
    for channel in range(2):
        allowed, lists = grid.allowed(channel), by_definition(grid, channel)
        assert [sorted(set(row)) for row in allowed.values.tolist()] == lists
        assert [len(row) for row in lists] == allowed.count.tolist()
        assert np.all(np.diff(allowed.values, axis=1) >= 0.0) and np.all(allowed.scale > 0.0)
        rebuilt = allowed.scale[:, None] * (allowed.codes - allowed.zero_point[:, None])
        size = np.abs(allowed.values).max() + np.abs(grid.offset).max()
        np.testing.assert_allclose(rebuilt, allowed.values, rtol=0.0, atol=1e-14 * size)
        assert np.all(allowed.rounding * allowed.scale <= 1e-14 * size)
        positions = rng.integers(0, 4, 7)
        mirrored = np.where(grid.scale[channel, grid.group] < 0.0, 3 - positions, positions)
        np.testing.assert_array_equal(grid.weights(channel, positions), grid.levels(channel)[np.arange(7), mirrored])
    assert grid.affine == bool(np.any(grid.scale == 0.0) or np.any(grid.offset))
    zero = [[0.0 in row for row in by_definition(grid, channel)] for channel in range(2)]
    np.testing.assert_array_equal(grid.has_zero[:, grid.group], zero)
    np.testing.assert_array_equal(grid.rows([1, 1]).levels(1), grid.levels(1))


@pytest.mark.parametrize("backend", ["native", "batched"])
@pytest.mark.parametrize("seed", range(12))
def test_optima(seed: int, backend: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    layer, grid = random_layer(rng, 2, n), random_grid(rng, 2, n, int(rng.integers(1, 5)))
    best = np.array([least_error(layer, by_definition(grid, c), c) for c in range(2)])
    check(lb.quantization_problem(layer, grid=grid), backend, best)


@pytest.mark.parametrize("backend", ["native", "batched"])
@pytest.mark.parametrize("seed", range(12))
def test_joint_optima(seed: int, backend: str) -> None:
    rng = np.random.default_rng(100 + seed)
    n = int(rng.integers(1, 6))
    layer, grid, k = random_layer(rng, 2, n), random_grid(rng, 2, n, 3), int(rng.integers(0, n + 1))
    problem = lb.joint_problem(layer, grid=grid, k=k)
    lists = [[sorted({0.0, *row}) for row in by_definition(grid, c)] for c in range(2)]
    check(problem, backend, np.array([least_error(layer, lists[c], c, k) for c in range(2)]))
    has = grid.has_zero
    assert problem.zero == ("level" if has.all() else "mixed" if has.any() else "extra")


@pytest.mark.parametrize("codes", [range(-4, 4), [-1.0, -0.3, 0.1, 0.45, 1.2]])
def test_single_levels_are_no_work(codes: list[float], rng: np.random.Generator) -> None:
    """Most weights have no choice: the search is that of the others, with the error that the fixed ones cause."""
    n, free = 60, 12
    inputs = rng.normal(size=(200, n)) + rng.normal(size=(200, 1))
    layer = lb.Layer.from_activations(rng.normal(size=(1, n)), inputs)
    scale = np.zeros((1, n))
    chosen = rng.permutation(n)[:free]
    scale[0, chosen] = 0.4
    offset = np.where(scale == 0.0, np.round(layer.matrix, 1), 0.0)
    grid = lb.Grid(codes, scale, 0.0, n, group=np.arange(n), offset=offset)
    solution = lb.solve(lb.quantization_problem(layer, grid=grid), "native", time_limit=20.0, jobs=1)
    gram, fixed = layer.gram[0], np.setdiff1d(np.arange(n), chosen)
    moved = (offset - layer.matrix)[0, fixed]
    inner = np.ascontiguousarray(gram[np.ix_(chosen, chosen)])
    shift = np.linalg.solve(inner, gram[np.ix_(chosen, fixed)] @ moved)
    left = float(moved @ gram[np.ix_(fixed, fixed)] @ moved - shift @ inner @ shift)
    weight = layer.matrix[:, chosen]
    smaller = lb.Layer(weight, inner, target=weight - shift, constant=np.array([left]))
    other = lb.solve(
        lb.quantization_problem(smaller, grid=lb.Grid(codes, [0.4], 0.0, free)), "native", time_limit=20.0, jobs=1
    )
    assert solution.status == other.status == ["optimal"]
    np.testing.assert_allclose(solution.upper_bound, other.upper_bound, rtol=1e-9)
    np.testing.assert_allclose(solution.weights[0, chosen], other.weights[0], rtol=1e-12)
    # Inputs without a choice are fixed first: one path, at the end of which the search is that of the others.
    assert solution.nodes[0] <= 1.2 * other.nodes[0] + 4 * n


@pytest.mark.parametrize("backend", ["native", "batched"])
def test_a_scale_for_each_input(backend: str, rng: np.random.Generator) -> None:
    """The grid of a layer whose inputs were scaled is the plain grid of the scaled weights."""
    n = 24
    inputs = rng.normal(size=(100, n)) + rng.normal(size=(100, 1))
    weight, folded = rng.normal(size=(2, n)), np.exp(rng.normal(size=n))
    layer = lb.Layer.from_activations(weight, inputs)
    plain = lb.Layer.from_activations(weight * folded, inputs / folded)
    scale = np.abs(weight * folded).max(axis=1) / 3.5
    problems = [
        lb.quantization_problem(plain, 3, scale=scale),
        lb.quantization_problem(layer, 3, scale=scale[:, None] / folded, g_idx=np.arange(n)),
    ]
    one, two = (lb.solve(p, backend, time_limit=20.0, jobs=1) for p in problems)
    assert np.all(one.lower_bound <= two.upper_bound * (1 + 1e-9))
    assert np.all(two.lower_bound <= one.upper_bound * (1 + 1e-9))
    if backend == "native":
        assert set(one.status) == set(two.status) == {"optimal"}
        np.testing.assert_allclose(one.upper_bound, two.upper_bound, rtol=1e-6)
    else:
        # Single precision, other units: the same up to what a few percent of the time limit are worth.
        np.testing.assert_allclose(two.lower_bound, one.lower_bound, rtol=0.1)
        np.testing.assert_allclose(two.upper_bound, one.upper_bound, rtol=0.1)


def test_every_method_leaves_single_levels_where_they_are(rng: np.random.Generator) -> None:
    layer = lb.Layer.from_activations(rng.normal(size=(2, 8)), rng.normal(size=(30, 8)))
    grid = lb.Grid(range(4), [[0.0, 0.4], [0.5, 0.0]], 1.0, 8, offset=[[0.3, -0.2], [0.0, 0.0]])
    for problem in (lb.quantization_problem(layer, grid=grid), lb.joint_problem(layer, grid=grid, k=5)):
        methods = [name for name, heuristic in HEURISTICS.items() if heuristic.can_treat(problem)]
        assert len(methods) >= 5
        for name in methods:
            assert lb.evaluate(problem, lb.run_heuristic(name, problem)).feasible.all(), name


def test_off_the_grid_with_single_levels(rng: np.random.Generator) -> None:
    layer = lb.Layer.from_activations(rng.normal(size=(1, 4)), rng.normal(size=(30, 4)))
    grid = lb.Grid(range(4), [[0.0, 0.5]], 0.0, 4, offset=[[0.3, -0.25]])
    score = lb.evaluate(lb.quantization_problem(layer, grid=grid), [[0.3, 0.4, -0.25, 0.5]])
    assert score.off_grid.tolist() == [2] and not score.feasible.any()
    # Beside a single level there is no gap that a distance could be compared with.
    np.testing.assert_allclose(score.steps, 0.5)
    np.testing.assert_allclose(score.violation, 0.25)


def test_files_of_such_problems_have_a_schema_of_their_own(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = lb.Layer.from_activations(rng.normal(size=(2, 6)), rng.normal(size=(30, 6)))
    affine = lb.Grid(range(4), [[0.0, 0.4], [0.5, 0.0]], 1.0, 6, offset=[[0.3, -0.2], [0.0, 0.0]])
    plain = lb.Grid(range(4), [0.4, 0.5], 1.0, 6)
    for grid, schema in ((affine, "2"), (plain, "1")):
        problem, path = lb.quantization_problem(layer, grid=grid), tmp_path / f"{schema}.safetensors"
        solution = lb.solve(problem, jobs=1)
        solution.save(path)
        with open_tensors(path) as file:
            assert file.metadata["layerbounds.solution"] == schema
            assert ("problem.grid.offset" in file.names) == (schema == "2")
        again = lb.load_solution(path)
        np.testing.assert_array_equal(again.problem.grid.levels(1), grid.levels(1))
        assert again.problem.fingerprint() == problem.fingerprint()
        solution.save_certificate(path)
        report = lb.verify(path)
        assert report.valid and report.channels[0].lower_bound == pytest.approx(solution.lower_bound[0], rel=1e-9)
    other = lb.Grid(range(4), [0.4, 0.5], 1.0, 6, offset=[0.1, 0.0])
    prints = {lb.quantization_problem(layer, grid=g).fingerprint() for g in (affine, plain, other)}
    assert len(prints) == 3


def with_forms(seed: int) -> lb.QuantizationProblem:
    """One scale, offsets, and single levels: integer forms of the codes serve it."""
    rng = np.random.default_rng(seed)
    n = 14
    inputs = rng.normal(size=(60, n)) + 1.5 * rng.normal(size=(60, 1))
    layer = lb.Layer.from_activations(rng.normal(size=(1, n)), inputs)
    scale = np.where(rng.random((1, n)) < 0.3, 0.0, 0.6)
    offset = np.where(scale == 0.0, rng.normal(size=(1, n)).round(1), -0.9 + 0.1 * rng.normal(size=(1, n)))
    return lb.quantization_problem(layer, 2, scale=scale, offset=offset, g_idx=np.arange(n))


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_bounds_and_proofs_with_integer_forms(seed: int, tmp_path: Path) -> None:
    problem, path = with_forms(seed), tmp_path / "c.safetensors"
    solution = lb.solve(problem, jobs=1)
    solution.save_certificate(path)
    assert solution.status == ["optimal"] and lb.verify(path).valid
    upper = float(solution.upper_bound[0])
    task = make_task(problem, 0, None, None)
    dual = root_dual(task, None, 0.5)
    assert isinstance(dual, DualPoint) and dual.split is not None
    assert 0.9 * upper < dual_bound(task, dual) <= upper
    # A tree of boxes that begins there, as the checker sees it.
    parts = box_leaves(task, dual, 0.999 * upper)
    proven = MINORANTS[Levels, DualPoint](task.gram, task.allowed, dual)
    shift = proven.get("shift", np.zeros(len(task.target)))
    minorant = Minorant(proven["d"], shift, [], proven["forms"], proven["weights"])
    prove(task.gram, minorant, task.allowed.scale, False)
    first = task.allowed.codes[0, 0]
    lattice = task.allowed.scale, task.allowed.zero_point - first, task.allowed.count
    least = over_boxes(task.target, task.gram, task.allowed.values, minorant, parts, *lattice)
    assert 0.9989 * upper <= float(least) <= upper


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_certificates_of_dual_points_with_integer_forms(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("highspy", reason="the native search closes such channels at once")
    problem, path = with_forms(seed), tmp_path / "c.safetensors"
    solution = lb.solve(problem, "highs", time_limit=0.2, jobs=1)
    solution.save_certificate(path)
    with open_tensors(path) as file:
        assert "proof.minorant.0.forms" in file.names
    report = lb.verify(path)
    assert report.valid and report.channels[0].lower_bound == pytest.approx(solution.lower_bound[0], rel=1e-9)


def test_bits_of_offsets() -> None:
    layer = lb.demo_layers()["conv1"]
    out, n = layer.out_features, layer.in_features
    scale = np.full((out, 1), 0.1)
    scale[0] = 0.2
    without = lb.Grid(range(16), scale, 0.0, n)
    with_minima = lb.Grid(range(16), scale, 0.0, n, offset=-8.0 * scale)
    bits = [layer_bits(lb.quantization_problem(layer, grid=g)) for g in (without, with_minima)]
    assert bits[1] - bits[0] == 16 * out


def test_scales_of_coarse_types() -> None:
    half = np.array([0.1, 0.2], dtype=np.float16)
    grid = lb.Grid(np.arange(16, dtype=np.uint8), half, np.array([7, 8], dtype=np.uint8), 4, offset=half)
    np.testing.assert_array_equal(grid.scale[:, 0], half.astype(np.float64))
    torch = pytest.importorskip("torch", reason="bfloat16 arrays are torch's")
    brain = torch.tensor([0.1, 0.2], dtype=torch.bfloat16)
    grid = lb.Grid(range(16), brain, brain, 4, offset=brain)
    np.testing.assert_array_equal(grid.offset[:, 0], brain.to(torch.float64).numpy())


def test_given_scales_with_offsets_codebooks_and_groups(rng: np.random.Generator) -> None:
    layer = lb.Layer.from_activations(rng.normal(size=(2, 6)), rng.normal(size=(30, 6)))
    scale, minimum, index = np.array([[0.5, 0.0], [0.25, 1.0]]), np.array([[-1.0, 0.3], [0.0, 2.0]]), [1, 0, 0, 1, 1, 0]
    four = lb.quantization_problem(layer, 2, scale=scale, offset=minimum, g_idx=index)
    np.testing.assert_array_equal(four.grid.levels(0)[1], [-1.0, -0.5, 0.0, 0.5])
    np.testing.assert_array_equal(four.grid.levels(0)[0], [0.3] * 4)
    assert four.label == "2-bit asymmetric, given scale and offset"
    both = lb.quantization_problem(layer, 2, scale=scale, zero_point=1, offset=minimum)
    np.testing.assert_array_equal(both.grid.levels(1)[3], [1.0, 2.0, 3.0, 4.0])
    assert both.label == "2-bit asymmetric, given scale, zero point and offset"
    table = lb.quantization_problem(layer, codebook="NF4", scale=scale, offset=0.5, g_idx=index)
    np.testing.assert_array_equal(table.grid.levels(1)[0], lb.codebook_grid(layer.weight, "nf4").codes + 0.5)
    assert table.label == "nf4, given scale and offset"
    own = lb.quantization_problem(layer, codebook=[3, -1, 0], scale=[2.0, 1.0], granularity="channel")
    np.testing.assert_array_equal(own.grid.levels(0)[0], [-2.0, 0.0, 6.0])
    tensor = lb.joint_problem(layer, 2, scale=0.5, offset=0.25, granularity="tensor", k=3)
    np.testing.assert_array_equal(tensor.grid.levels(1)[5], [0.25, 0.75, 1.25, 1.75])
    assert tensor.zero == "extra"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 3, "offset": [1, 1]}, "offset belongs to given scales"),
        ({"codebook": "nf4", "offset": [1, 1]}, "offset belongs to given scales"),
        ({"codebook": "nf4", "g_idx": [0] * 6}, "g_idx belongs to given scales"),
        ({"codebook": "nf4", "scale": [1, 1], "range": "mse"}, "not fitted"),
        ({"codebook": "nf4", "scale": [1, 1], "bits": 4}, "leave out bits"),
        ({"codebook": "nf4", "scale": [1, 1], "symmetric": True}, "leave out symmetric"),
        ({"codebook": "free", "bits": 2, "offset": [1, 1]}, "no offset"),
        ({"bits": 3, "scale": "free", "offset": [1, 1]}, "offset belongs to given scales"),
        ({"bits": 3, "scale": [1, 1], "offset": [1, 1, 1]}, "offset has shape"),
        ({"bits": 3, "scale": [1, 1], "offset": [1, 1], "symmetric": True}, "leave out zero_point and offset"),
        ({"grid": lb.Grid([0, 1], [1.0, 1.0], 0, 6), "offset": [1, 1]}, "leave out offset"),
    ],
)
def test_contradictions(arguments: dict[str, object], words: str, rng: np.random.Generator) -> None:
    layer = lb.Layer.from_activations(rng.normal(size=(2, 6)), rng.normal(size=(30, 6)))
    with pytest.raises(InputError, match=words):
        lb.quantization_problem(layer, **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_table_of_bitsandbytes() -> None:
    found = pytest.importorskip("bitsandbytes.functional", reason="the table is that of bitsandbytes")
    own = found.get_4bit_type("fp4", device="cpu").tolist()
    assert sorted(set(own)) == lb.codebook_grid(np.ones((1, 3)), "bnb-fp4").codes.tolist()


def test_levels_that_float64_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(InputError, match="pass a scale of 0"):
        lb.Grid(range(4), [1e-20], 0.0, 3, offset=[1.0])
    assert lb.Grid(range(4), [0.0], 0.0, 3, offset=[1.0]).allowed(0).count.tolist() == [1, 1, 1]
