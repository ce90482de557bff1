"""The diagonal minorant of the batched bounds: below the Gram matrix to the digit, and near the best."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import layerbounds as lb
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start, is_minorant, maximize_minorant
from layerbounds.bounds.minorants.lanczos import extreme_values
from layerbounds.bounds.minorants.newton import _Ascent, ascend_newton
from layerbounds.bounds.minorants.newton_system import _conjugate_gradients, solve_squared
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.kernels.arithmetic import CPU, DOUBLE
from layerbounds.search.quantization import preparation

LAYERS = {
    "resnet20_layers": ["linear", "layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv2"],
    "minilm_layers": ["encoder.layer.0.attention.self.query", "encoder.layer.2.attention.output.dense"],
    "smollm2_layers": ["model.layers.0.self_attn.q_proj", "model.layers.15.mlp.gate_proj"],
}


def gram_of(rng, n, condition=1e3, spread=1.0):
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (basis * np.geomspace(1.0, 1.0 / condition, n)) @ basis.T
    scale = 10.0 ** rng.uniform(-spread, spread, n)
    return 0.5 * (matrix + matrix.T) * np.outer(scale, scale)


class TorchArithmetic:
    """The least that a device needs."""

    name = "torch"

    def __init__(self, torch):
        self.torch = torch

    def put(self, array):
        return self.torch.tensor(np.asarray(array), dtype=self.torch.float32)

    def get(self, array):
        return array.numpy().astype(np.float64)

    def inverse(self, matrix):
        factor, info = self.torch.linalg.cholesky_ex(matrix)
        return None if int(info) else self.torch.cholesky_inverse(factor)


@pytest.mark.parametrize(("file", "name"), [(f, n) for f, names in LAYERS.items() for n in names])
def test_real_layers_need_no_shrinking(reference_data, file, name):
    gram = load_file(reference_data / f"{file}.safetensors")[f"{name}.gram"].astype(np.float64)
    live = np.diag(gram) > 0
    inner = semidefinite_shift(gram[np.ix_(live, live)])[0]
    d = ascend_newton(inner, np.ones(len(inner)), steps=6)
    np.testing.assert_array_equal(certified_minorant(inner, d), d)
    assert np.all(d > 0)
    assert d.sum() > 1.7 * interior_start(inner).sum()
    whole = np.zeros(len(gram))
    whole[live] = d
    if not np.all(live):
        found = ascend_newton(gram, np.ones(len(gram)), steps=6)
        assert np.all(found[~live] == 0)
        np.testing.assert_allclose(found.sum(), d.sum(), rtol=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_it_comes_near_the_best(seed):
    rng = np.random.default_rng(seed)
    gram = gram_of(rng, int(rng.integers(2, 40)), 10.0 ** rng.uniform(0, 4))
    objective = rng.uniform(0, 1, len(gram)) / np.diag(gram)
    best = objective @ maximize_minorant(gram, objective, relative_gap=1e-4, max_steps=300)
    d = ascend_newton(gram, objective, steps=40, relative_gap=5e-3)
    assert is_minorant(gram, d)
    assert objective @ d > 0.99 * best
    assert objective @ d <= (1.0 + 1e-3) * best


@pytest.mark.parametrize("condition", [1e8, 1e10, 1e12])
def test_double_precision_takes_over(condition):
    rng = np.random.default_rng(int(np.log10(condition)))
    gram = gram_of(rng, 40, condition, 0.0)
    d = ascend_newton(gram, np.ones(40), steps=20)
    assert is_minorant(gram, d)
    assert d.sum() > 0.8 * maximize_minorant(gram, np.ones(40), relative_gap=0.05, max_steps=200).sum()


def test_degenerate_matrices():
    assert not np.any(ascend_newton(np.zeros((3, 3)), np.ones(3)))
    assert not np.any(ascend_newton(np.ones((4, 4)), np.ones(4)))
    assert ascend_newton(np.zeros((0, 0)), np.zeros(0)).size == 0
    for factor in (1e-30, 1.0, 1e30):
        d = ascend_newton(np.array([[factor]]), np.ones(1))
        assert is_minorant(np.array([[factor]]), d) and d[0] > 0.9 * factor
        d = ascend_newton(factor * np.diag([1.0, 0.0, 2.0]), np.array([1.0, 1.0, 0.0]))
        assert d[2] < 2.0 * factor
        assert factor > d[0] > 0.9 * factor and d[1] == 0 and d[2] > 0
    # Two equal inputs, made definite by the product's shift.
    rng = np.random.default_rng(5)
    x = rng.normal(size=(50, 6))[:, [0, 1, 2, 3, 4, 5, 5]]
    gram = semidefinite_shift(x.T @ x)[0]
    d = ascend_newton(gram, np.ones(7))
    assert is_minorant(gram, d) and d.sum() > 0.5 * np.linalg.eigvalsh(gram)[2]


def test_unscaled_inputs_give_the_same(rng):
    gram = gram_of(rng, 12)
    scale = 10.0 ** rng.uniform(-4, 4, 12)
    d = ascend_newton(gram, np.ones(12))
    scaled = ascend_newton(gram * np.outer(scale, scale), 1.0 / scale**2)
    np.testing.assert_allclose(scaled / scale**2, d, rtol=1e-2)


def test_a_good_start_is_kept(rng):
    gram = gram_of(rng, 30)
    objective = rng.uniform(size=30) / np.diag(gram)
    best = ascend_newton(gram, objective, steps=30, relative_gap=1e-3)
    cold, warm = (ascend_newton(gram, objective, start, steps=2) for start in (None, best))
    assert objective @ warm > max(0.95 * (objective @ best), objective @ cold)
    assert is_minorant(gram, ascend_newton(gram, objective, np.zeros(30)))
    assert is_minorant(gram, ascend_newton(gram, objective, 1e6 * best))


def test_it_stops_when_asked(rng):
    gram = gram_of(rng, 30)
    stopped = ascend_newton(gram, np.ones(30), stop=lambda: True)
    assert is_minorant(gram, stopped) and np.all(stopped > 0)
    assert stopped.sum() < ascend_newton(gram, np.ones(30)).sum()


@pytest.mark.parametrize("arithmetic", [CPU, DOUBLE])
def test_systems_leave_the_inverse_alone(rng, arithmetic):
    n = 1100
    root = rng.normal(size=(n, n)) / np.sqrt(n)
    inverse = arithmetic.put(np.eye(n) + root @ root.T)
    before, weights, right = inverse.copy(), rng.uniform(0.1, 10, n), rng.normal(size=(n, 2))
    found = solve_squared(inverse, arithmetic.put(weights), arithmetic.put(right))
    np.testing.assert_array_equal(inverse, before)
    exact = np.linalg.solve(before.astype(float) ** 2 + np.diag(weights), right)
    np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())
    iterated = _conjugate_gradients(inverse, arithmetic.put(weights), arithmetic.put(right))
    np.testing.assert_allclose(iterated, exact, atol=3e-2 * np.abs(exact).max())


def test_extreme_values_of_many_steps(rng):
    gram = gram_of(rng, 20, 100.0, 0.0)
    inverse = np.linalg.inv(gram)
    steps = np.column_stack([rng.normal(size=20), np.ones(20), np.zeros(20), -np.ones(20)])
    low, high = extreme_values(inverse, steps, rng.normal(size=20), 20, DOUBLE)
    for j in range(4):
        values = np.linalg.eigvals(inverse * steps[:, j]).real
        if np.any(steps[:, j] > 0):
            np.testing.assert_allclose(high[j], values.max(), rtol=0.02)
        if np.any(steps[:, j] < 0):
            np.testing.assert_allclose(low[j], values.min(), rtol=0.02)


def test_another_device_comes_to_the_same():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    gram = gram_of(rng, 60)
    objective = rng.uniform(size=60) / np.diag(gram)
    here = ascend_newton(gram, objective)
    there = ascend_newton(gram, objective, arithmetic=TorchArithmetic(torch))
    assert is_minorant(gram, there)
    np.testing.assert_allclose(objective @ there, objective @ here, rtol=0.02)


def test_large_layers_are_prepared_with_it(monkeypatch):
    monkeypatch.setattr(preparation, "DOUBLE_SIZE", 10)
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(60, 12))
    problem = lb.quantization_problem(lb.Layer.from_activations(rng.normal(size=(1, 12)), inputs), bits=2)
    solution = lb.solve(problem, time_limit=20, jobs=1)
    assert solution.status[0] == lb.Status.OPTIMAL
    prepared = preparation.prepare(problem.layer.gram[0], 1.0)
    # The two may use other BLAS threads.
    expected = ascend_newton(prepared.gram, np.ones(12))
    np.testing.assert_allclose(prepared.minorants[12], expected, rtol=0.0, atol=1e-3 * expected.max())


def test_products_stay_in_single_precision(rng):
    kinds = []

    def push(steps, vector):
        kinds.append(vector.dtype)
        return steps * vector

    inverse, steps = CPU.put(np.linalg.inv(gram_of(rng, 12))), CPU.put(rng.normal(size=(12, 3)))
    extreme_values(inverse, steps, CPU.put(rng.normal(size=12)), 4, CPU, push)
    assert kinds == [np.dtype(np.float32)] * 4


def test_inverses_take_the_place_of_those_before(rng):
    gram = gram_of(rng, 20, 10.0, 0.0)
    scale = np.diag(gram) ** -0.5
    ascent = _Ascent(gram, scale, np.ones(20), CPU)
    first = ascent._inverse(CPU.put(np.zeros(20)), CPU.put(np.empty((20, 20))))
    again = ascent._inverse(CPU.put(np.full(20, 1e-3)), first)
    assert np.shares_memory(first, again)
    expected = np.linalg.inv(gram * np.outer(scale, scale) - 1e-3 * np.eye(20))
    np.testing.assert_allclose(again, expected, rtol=0.0, atol=1e-3 * np.abs(expected).max())


def test_a_breakdown_leaves_a_usable_inverse(rng, monkeypatch):
    """What a failed trial has overwritten is computed again."""
    gram = gram_of(rng, 20)
    ascent = _Ascent(gram, np.diag(gram) ** -0.5, np.ones(20), CPU)
    d, inverse = ascent._started(None)
    before, kept, inverted, trials = inverse.copy(), d.copy(), ascent._inverse, []

    def breaks(trial, room):
        trials.append(trial)
        found = inverted(trial, room)
        return found if np.array_equal(trial, kept) else None

    monkeypatch.setattr(ascent, "_inverse", breaks)
    after, inverse = ascent._multiplied(d, inverse, None)
    assert len(trials) == 2
    np.testing.assert_array_equal(after, kept)
    np.testing.assert_allclose(inverse, before, rtol=0.0, atol=1e-4 * np.abs(before).max())
