"""The first-order diagonal: valid after any number of steps, and near the Newton method's."""

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.bounds.minorants.diagonal import is_minorant, maximize_minorant
from layerbounds.bounds.minorants.first_order import ascend_minorant
from layerbounds.search.quantization import preparation


def gram_of(rng, n, condition):
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (basis * np.geomspace(1.0, 1.0 / condition, n)) @ basis.T
    scale = 10.0 ** rng.uniform(-2, 2, n)
    return 0.5 * (matrix + matrix.T) * np.outer(scale, scale)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
@pytest.mark.parametrize("steps", [0, 1, 7, 30])
def test_every_iterate_is_a_minorant(condition, steps):
    rng = np.random.default_rng([steps, int(condition)])
    gram = gram_of(rng, 40, condition)
    d = ascend_minorant(gram, rng.uniform(0, 1, 40), steps)
    assert np.all(d >= 0) and np.any(d > 0)
    assert is_minorant(gram, d)


@pytest.mark.parametrize("seed", range(4))
def test_it_comes_near_the_newton_method(seed):
    rng = np.random.default_rng(seed)
    gram, objective = gram_of(rng, 60, 1e3), rng.uniform(0.1, 1, 60)
    newton, first = maximize_minorant(gram, objective), ascend_minorant(gram, objective)
    assert objective @ first >= 0.6 * (objective @ newton)
    assert objective @ first > 1.2 * (objective @ ascend_minorant(gram, objective, 0))


def test_it_stops_when_asked():
    rng = np.random.default_rng(0)
    gram = gram_of(rng, 20, 10.0)
    stopped = ascend_minorant(gram, np.ones(20), stop=lambda: True)
    np.testing.assert_array_equal(stopped, ascend_minorant(gram, np.ones(20), 0))


def test_singular_matrices_and_objectives_of_zeros():
    assert not np.any(ascend_minorant(np.ones((4, 4)), np.ones(4)))
    assert is_minorant(np.eye(3), ascend_minorant(np.eye(3), np.zeros(3)))
    assert is_minorant(np.array([[2.0]]), ascend_minorant(np.array([[2.0]]), np.ones(1)))


def test_large_layers_use_it(monkeypatch):
    monkeypatch.setattr(preparation, "NEWTON_SIZE", 10)
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(60, 12))
    problem = lb.quantization_problem(lb.Layer.from_activations(rng.normal(size=(1, 12)), inputs), bits=2)
    solution = lb.solve(problem, time_limit=20, jobs=1)
    assert solution.status[0] == lb.Status.OPTIMAL
    prepared = preparation.prepare(problem.layer.gram[0], 1.0)
    # The two may use other BLAS threads.
    expected = ascend_minorant(prepared.gram, np.ones(12))
    np.testing.assert_allclose(prepared.minorants[12], expected, rtol=0.0, atol=1e-9 * expected.max())
