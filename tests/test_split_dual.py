"""Split cuts at the root: alternating directions, the relaxation with forms, and its certification."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from matrices import correlated, never

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.alternating import (
    AlternatingDirections,
    _nearest_integer_kink,
    _nearest_kink,
)
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.quantization.cuts import certified_weights, fractional_product, separate_at
from layerbounds.bounds.quantization.relaxation import evaluate_relaxation, maximize_relaxation, refine
from layerbounds.bounds.quantization.split_relaxation import SplitWeights, evaluate_split, maximize_split, refine_split
from layerbounds.certify.interval import dual_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import DualPoint, FormTerms
from layerbounds.search.quantization.split_forms import find_split, prepare_split
from layerbounds.solvers.native import NativeBackend

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow


def random_split(rng: np.random.Generator, gram: Float, cuts: int) -> SplitWeights:
    n = len(gram)
    forms = rng.integers(-2, 3, (n, cuts)).astype(np.float64)
    size = np.linalg.eigvalsh(gram)[-1]
    return SplitWeights(forms, *certified_weights(gram, forms, rng.uniform(0, size, n), rng.uniform(0, size, cuts)))


def objective(gram: Float, points: Float, origin: Float) -> Float:
    deviation = points - origin
    return np.asarray(np.einsum("ij,ij->i", deviation @ gram, deviation))


@pytest.mark.parametrize("seed", range(20))
def test_any_point_and_any_multipliers_stay_below_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, top = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    gram = correlated(rng, n) * 10.0 ** rng.integers(-8, 9)
    origin = rng.uniform(-1.0, top + 1.0, n)
    levels = np.tile(np.arange(top + 1.0)[:, None], n)
    points = np.array(list(itertools.product(range(top + 1), repeat=n)), dtype=np.float64)
    values = objective(gram, points, origin)
    split = random_split(rng, gram, 2 * n)
    for _ in range(30):
        z = origin + rng.normal(size=n) * rng.choice([0.0, 0.3, 3.0])
        rho = rng.normal(size=2 * n) * rng.choice([0.0, 0.1, 1.0]) * np.mean(split.weights)
        found = evaluate_split(gram, origin, levels, split, z, rho)
        assert found.value <= values.min()
        # The terms price every level.
        priced = found.value + np.sum(
            [found.terms[points[:, i].astype(int), i] - found.terms[:, i].min() for i in range(n)], axis=0
        )
        least = np.array([priced[points[:, i] == v].min() for i in range(n) for v in range(top + 1)])
        true = np.array([values[points[:, i] == v].min() for i in range(n) for v in range(top + 1)])
        assert np.all(least <= true * (1 + 1e-12))


def test_without_forms_it_is_the_tangent_relaxation() -> None:
    rng = np.random.default_rng(5)
    gram, origin = correlated(rng, 6), rng.uniform(0, 3, 6)
    levels = np.tile(np.arange(4.0)[:, None], 6)
    d = maximize_minorant(gram, np.ones(6))
    z = rng.uniform(0, 3, 6)
    split = SplitWeights(np.zeros((6, 0)), d, np.zeros(0))
    found = evaluate_split(gram, origin, levels, split, z, np.zeros(0))
    plain = evaluate_relaxation(gram, origin, levels, z, d)
    assert found.value == pytest.approx(plain.value, rel=1e-12)
    assert np.allclose(found.terms, plain.terms)


def test_proximal_points_are_minimisers() -> None:
    rng = np.random.default_rng(6)
    levels = np.sort(rng.normal(size=(5, 40)) * 2.0, axis=0)
    levels[4, :10] = levels[3, :10]
    v, kappa = rng.normal(size=40) * 4.0, rng.uniform(0.5, 40.0, 40)
    found = _nearest_kink(v, levels, kappa)
    grid = np.linspace(levels[0], levels[-1], 20_001)
    for i in range(40):
        distinct = np.unique(levels[:, i])
        cost = np.interp(grid[:, i], distinct, distinct**2) + kappa[i] * (grid[:, i] - v[i]) ** 2
        mine = np.interp(found[i], distinct, distinct**2) + kappa[i] * (found[i] - v[i]) ** 2
        assert mine <= cost.min() + 1e-9
    integers = np.tile(np.arange(-30.0, 31.0)[:, None], 40)
    assert np.allclose(_nearest_integer_kink(v, kappa), _nearest_kink(v, integers, kappa))


@pytest.mark.parametrize("seed", range(6))
def test_alternating_directions_agree_with_coordinate_descent(seed: int) -> None:
    # Two algorithms for one convex problem; at its solution the bound equals the primal value.
    rng = np.random.default_rng([7, seed])
    n = 10
    gram, origin = correlated(rng, n, strength=0.5), rng.uniform(0.0, 3.0, n)
    levels = np.tile(np.arange(4.0)[:, None], n)
    d = maximize_minorant(gram, np.ones(n))
    method = AlternatingDirections(gram, origin, levels, d, origin)
    method.iterate(3000)
    z = np.clip(method.z, 0.0, 3.0)
    primal = float(objective(gram, z[None], origin)[0] + d @ fractional_product(z))
    found = maximize_relaxation(gram, origin, levels, np.full(n, 4), d, origin, never)
    assert found.value == pytest.approx(primal, rel=1e-6)
    assert evaluate_relaxation(gram, origin, levels, method.z, d).value == pytest.approx(primal, rel=1e-6)


def test_the_relaxation_with_forms_has_no_duality_gap() -> None:
    rng = np.random.default_rng(8)
    n = 12
    gram, origin = correlated(rng, n), rng.uniform(0.0, 7.0, n)
    levels = np.tile(np.arange(8.0)[:, None], n)
    split = find_split(gram, maximize_minorant(gram, np.ones(n)))
    assert split is not None
    best = maximize_split(gram, origin, levels, split, origin, never)
    z = np.clip(best.z, 0.0, 7.0)
    primal = float(objective(gram, z[None], origin)[0])
    primal += float(split.units @ fractional_product(z) + split.weights @ fractional_product(z @ split.forms))
    assert best.value == pytest.approx(primal, rel=5e-3)
    assert best.value <= primal


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_refits_and_separation_raise_the_bound_and_keep_it_valid(seed: int) -> None:
    rng = np.random.default_rng([9, seed])
    n, top = 6, 3
    gram = correlated(rng, n)
    origin = rng.uniform(-0.5, top + 0.5, n)
    levels = np.tile(np.arange(top + 1.0)[:, None], n)
    d = maximize_minorant(gram, np.ones(n))
    split = find_split(gram, d)
    assert split is not None
    values = objective(gram, np.array(list(itertools.product(range(top + 1), repeat=n))), origin)
    plain = refine(gram, origin, levels, np.full(n, top + 1), d, origin, 5, never)
    start = maximize_split(gram, origin, levels, split, plain.z, never)
    found = refine_split(gram, np.linalg.inv(gram), origin, levels, split, plain.z, 12, never)
    assert start.value <= found.value <= values.min()
    assert found.value >= plain.value * (1 - 1e-3)


def test_separation_at_a_point_finds_new_violated_forms() -> None:
    rng = np.random.default_rng(10)
    gram = correlated(rng, 12)
    z = rng.uniform(0, 3, 12)
    dual = np.linalg.inv(gram) * 0.02
    new = separate_at(dual, np.linalg.inv(gram), np.zeros((12, 0)), z, 9)
    assert 0 < new.shape[1] <= 9
    assert np.all(np.count_nonzero(new, axis=0) == 2)
    assert np.all(fractional_product(z @ new) > np.einsum("ij,ij->j", new, dual @ new))
    again = separate_at(dual, np.linalg.inv(gram), new, z, 1000)
    keys = {tuple(v) for v in new.T} | {tuple(-v) for v in new.T}
    assert not any(tuple(v) in keys for v in again.T)


def exact_optimum(task: Task[Levels]) -> Fraction:
    gram = [[Fraction(float(x)) for x in row] for row in task.gram]
    target = [Fraction(float(x)) for x in task.target]
    best = None
    for point in itertools.product(*task.allowed.values):
        e = [Fraction(float(v)) - t for v, t in zip(point, target, strict=True)]
        value = sum(a * h * b for a, row in zip(e, gram, strict=True) for h, b in zip(row, e, strict=True))
        best = value if best is None else min(best, value)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(30))
def test_no_certified_bound_exceeds_the_exact_optimum(seed: int) -> None:
    rng = np.random.default_rng([11, seed])
    n = int(rng.integers(1, 5))
    rank = None if seed % 3 else max(n - 1, 1)
    gram = correlated(rng, n, rank) * 10.0 ** rng.integers(-10, 11)
    layer = lb.Layer(weight=rng.normal(size=(1, n)) * 10.0 ** rng.integers(-4, 5), gram=gram)
    granularity = 2 if seed % 4 == 0 else "channel"
    grid = lb.uniform_grid(layer.weight, bits=2, symmetric=seed % 2 == 0, granularity=granularity)
    task = make_task(lb.quantization_problem(layer, grid=grid), 0, None, None)
    m = len(task.target)
    optimum = exact_optimum(task)
    unit = float(np.mean(np.diag(task.gram)))
    for _ in range(12):
        cuts = int(rng.integers(0, 2 * m + 1))
        forms = rng.integers(-2, 3, (m, cuts)).astype(np.float64)
        weights = rng.uniform(0, unit, cuts) * float(task.allowed.scale[0]) ** 2 * rng.choice([0.0, 1e-3, 1.0])
        rho = rng.normal(size=cuts) * unit * float(task.allowed.scale[0]) ** 2 * rng.choice([0.0, 0.1, 1.0])
        z = task.target + rng.normal(size=m) * float(task.allowed.scale[0]) * rng.choice([0.0, 0.2, 2.0])
        d = rng.uniform(-0.2, 1.0, m) * unit * rng.choice([0.0, 1e-3, 1.0])
        bound = dual_bound(task, DualPoint(z, d, FormTerms(forms, weights, rho)))
        assert Fraction(bound) <= max(optimum, Fraction(0))


def test_the_bound_at_the_optimum_of_a_lattice_form_is_tight() -> None:
    # H = V diag(g) Vᵀ + a little: every term can be reached at once, so that the bound is the optimum.
    layer = lb.Layer(weight=np.array([[0.3, 0.9]]), gram=np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]]))
    task = make_task(lb.quantization_problem(layer, bits=3, scale=np.array([0.5])), 0, None, None)
    forms, weights = np.array([[1.0], [1.0]]), np.array([0.25 * (1 - 1e-9)])
    with_form = dual_bound(task, DualPoint(task.target, np.zeros(2), FormTerms(forms, weights, np.zeros(1))))
    assert with_form == pytest.approx(float(exact_optimum(task)), rel=1e-6)
    assert dual_bound(task, DualPoint(task.target, np.full(2, 1e-10))) < 1e-3 * with_form


@pytest.fixture
def task() -> Task[Levels]:
    rng = np.random.default_rng(12)
    layer = lb.Layer(weight=rng.normal(size=(1, 4)), gram=correlated(rng, 4))
    return make_task(lb.quantization_problem(layer, bits=3), 0, None, None)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("forms", np.full((4, 2), 0.5)),
        ("forms", np.zeros((3, 2))),
        ("forms", np.zeros(4)),
        ("forms", np.full((4, 2), 1e6)),
        ("forms", np.full((4, 2), np.nan)),
        ("weights", np.array([1e-3, -1e-9])),
        ("weights", np.zeros(3)),
        ("weights", np.array([0.0, np.inf])),
        ("multipliers", np.array([0.0, np.nan])),
        ("multipliers", np.zeros((2, 1))),
    ],
)
def test_invalid_forms_are_refused(task: Task[Levels], part: str, value: Float) -> None:
    good = FormTerms(np.ones((4, 2)), np.zeros(2), np.zeros(2))
    d = np.zeros(4)
    assert dual_bound(task, DualPoint(task.target, d, good)) <= 0.0
    with pytest.raises(CertificationError, match="invalid dual point"):
        dual_bound(task, DualPoint(task.target, d, replace(good, **{part: value})))


def test_forms_of_a_codebook_are_refused() -> None:
    rng = np.random.default_rng(13)
    layer = lb.Layer(weight=rng.normal(size=(1, 4)), gram=correlated(rng, 4))
    task = make_task(lb.quantization_problem(layer, grid=lb.codebook_grid(layer.weight, "nf4")), 0, None, None)
    split = FormTerms(np.ones((4, 1)), np.zeros(1), np.zeros(1))
    with pytest.raises(CertificationError, match="invalid dual point"):
        dual_bound(task, DualPoint(task.target, np.zeros(4), split))


@pytest.mark.parametrize("granularity", ["channel", 48])
@pytest.mark.slow
def test_a_layer_is_bounded_by_forms(granularity: str | int) -> None:
    layer = lb.demo_layers()["conv2"]
    grid = lb.uniform_grid(layer.weight, bits=3, granularity=granularity)
    problem = lb.quantization_problem(layer, grid=grid)
    solution = lb.solve(problem, channels=[0], node_limit=100, time_limit=600, jobs=1)
    task = make_task(problem, 0, None, None)
    assert solution.bound_kind[0] == lb.BoundKind.DUAL
    d = maximize_minorant(task.gram, np.full(len(task.target), float(np.mean(task.allowed.scale)) ** 2))
    assert solution.lower_bound[0] > 1.1 * dual_bound(task, DualPoint(task.target, d)) > 0


@pytest.mark.slow
def test_forms_raise_the_root_of_a_real_layer(reference_data: Path) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer1.0.conv1"]
    problem = lb.quantization_problem(layer, bits=3)
    prepared = NativeBackend().prepare(problem, 0, 1)
    assert prepared is not None
    split = prepare_split(prepared)
    task = make_task(problem, 1, prepared, None)
    scale = task.allowed.scale[prepared.order]
    origin = task.target[prepared.order] / scale + task.allowed.zero_point[prepared.order] - task.allowed.codes[0, 0]
    levels = np.ascontiguousarray((task.allowed.codes - task.allowed.codes[0, 0]).T)
    count = np.full(len(origin), len(levels))
    d = prepared.minorants[prepared.size]
    plain = refine(prepared.gram, origin, levels, count, d, origin, 3, never)
    assert split is not None
    found = refine_split(prepared.gram, prepared.covariance, origin, levels, split, plain.z, 2, never)
    assert found.value > 1.05 * plain.value
    order = np.argsort(prepared.order)
    m = float(scale[0]) ** 2
    z = (
        task.allowed.scale[0] * (found.z + task.allowed.codes[0, 0])
        - task.allowed.scale[0] * task.allowed.zero_point[0]
    )[order]
    terms = FormTerms(found.split.forms[order], found.split.weights * m, found.multipliers * m)
    bound = dual_bound(task, DualPoint(z, found.split.units[order], terms))
    assert bound == pytest.approx(found.value * m, rel=1e-4)
    rng = np.random.default_rng(14)
    choice = np.clip(np.rint(origin + rng.normal(size=(2000, len(origin))) * 0.3), 0, levels[-1]).astype(int)
    nearby = objective(prepared.gram, choice.astype(np.float64), origin) * m
    assert bound <= nearby.min()
