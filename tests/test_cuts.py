"""Split cuts: proven weights, valid bounds, and a tree that still finds the optimum."""

import itertools

import numpy as np
import pytest
from matrices import correlated

import layerbounds as lb
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.quantization.cuts import (
    GENERIC,
    certified_weights,
    generate_cuts,
    is_cut_minorant,
    maximize_weights,
    separate,
    strongest,
    weight_schedule,
)
from layerbounds.search.quantization import cut_tests


def joint_bound(z, units, weights, forms):
    values = z @ forms
    return units @ (z - np.rint(z)) ** 2 + weights @ (values - np.rint(values)) ** 2


@pytest.mark.parametrize("seed", range(6))
def test_the_joint_bound_is_below_every_integer_point(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 6))
    gram = correlated(rng, n, strength=3.0)
    start = maximize_minorant(gram, np.ones(n))
    found = generate_cuts(gram, start, rounds=3)
    assert found is not None, "strongly correlated inputs have violated forms"
    cuts, units, weights = found
    units, weights = certified_weights(gram, cuts.forms, units, weights)
    assert is_cut_minorant(gram, cuts.forms, units, weights)
    assert np.all(weights >= 0) and weights.sum() > 0
    assert np.linalg.eigvalsh(gram - np.diag(units) - (cuts.forms * weights) @ cuts.forms.T)[0] >= -1e-12 * gram.max()
    for _ in range(10):
        z = rng.uniform(-2, 2, n)
        box = itertools.product(*[range(int(np.floor(v)) - 2, int(np.floor(v)) + 4) for v in z])
        best = min(float((q - z) @ gram @ (q - z)) for q in map(np.array, box))
        assert joint_bound(z, units, weights, cuts.forms) <= best * (1 + 1e-9)


def test_forms_raise_the_expected_bound():
    rng = np.random.default_rng(0)
    gram = correlated(rng, 24, strength=3.0)
    start = maximize_minorant(gram, np.ones(24))
    cuts, units, weights = generate_cuts(gram, start, rounds=4)
    units, weights = certified_weights(gram, cuts.forms, units, weights)
    assert units.sum() + weights.sum() > 1.2 * start.sum()


def test_separation_returns_new_violated_integer_forms():
    rng = np.random.default_rng(1)
    gram = correlated(rng, 12, strength=3.0)
    point = maximize_weights(
        gram, np.zeros((12, 0)), np.full(12, GENERIC), np.zeros(0), (np.full(12, 1e-3), np.zeros(0))
    )
    new = separate(point.dual, np.zeros((12, 0)), 7)
    assert 0 < new.shape[1] <= 7
    assert np.all(new == np.rint(new)) and np.all(np.count_nonzero(new, axis=0) == 2)
    assert np.all(np.einsum("ij,ik,kj->j", new, point.dual, new) < GENERIC)
    again = separate(point.dual, new, 1000)
    keys = {tuple(v) for v in new.T} | {tuple(-v) for v in new.T}
    assert not any(tuple(v) in keys for v in again.T)


def test_every_depth_of_a_schedule_is_a_proven_minorant():
    rng = np.random.default_rng(2)
    n = 16
    gram = correlated(rng, n, strength=3.0)
    found = generate_cuts(gram, maximize_minorant(gram, np.ones(n)), rounds=3)
    cuts, units, weights = strongest(*found, 20)
    expected = np.full((n + 1, n), GENERIC), np.full((n + 1, cuts.size), GENERIC)
    unit_rows, weight_rows = weight_schedule(gram, cuts, [16, 11, 6], expected, (units, weights))
    for k in range(2, n + 1):
        m = cuts.active(k)
        assert np.all(np.count_nonzero(cuts.forms[:k, :m], axis=0) >= 2)
        assert np.all(np.count_nonzero(cuts.forms[:k, m:], axis=0) < 2)
        assert np.all(weight_rows[k, m:] == 0)
        rest = (
            gram[:k, :k] - np.diag(unit_rows[k, :k]) - (cuts.forms[:k, :m] * weight_rows[k, :m]) @ cuts.forms[:k, :m].T
        )
        assert np.linalg.eigvalsh(rest)[0] >= -1e-12 * gram.max()
    assert weight_rows[n].sum() > 0


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_tree_with_cuts_finds_the_optimum(seed, bits, monkeypatch):
    monkeypatch.setattr(cut_tests, "SMALLEST", 2)
    monkeypatch.setattr(cut_tests, "ENOUGH", 1)
    rng = np.random.default_rng([seed, bits])
    n = 7 if bits == 2 else 5
    layer = lb.Layer(
        weight=rng.normal(size=(3, n)), gram=correlated(rng, n, strength=3.0) * 10.0 ** rng.integers(-6, 7)
    )
    problem = lb.quantization_problem(layer, bits=bits)
    solution = lb.solve(problem, jobs=1, time_limit=20)
    for channel in range(3):
        levels = problem.grid.levels(channel)
        deviations = np.array(list(itertools.product(*levels))) - layer.weight[channel]
        best = np.min(np.einsum("ij,jk,ik->i", deviations, layer.gram[0], deviations))
        assert solution.lower_bound[channel] <= best * (1 + 1e-12)
        assert solution.upper_bound[channel] == pytest.approx(best, rel=1e-9)
        assert solution.status[channel] == lb.Status.OPTIMAL


@pytest.mark.slow
def test_cuts_save_nodes_on_a_real_layer(reference_data, monkeypatch):
    whole = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer1.0.conv1"]
    live = np.flatnonzero(whole.live())[:80]
    gram = whole.gram[0][np.ix_(live, live)]
    layer = lb.Layer(weight=whole.matrix[:1, live], gram=gram + 1e-6 * np.diag(gram).mean() * np.eye(80))
    problem = lb.quantization_problem(layer, bits=4, scale=lb.uniform_grid(whole.weight, 4).scale[:1, 0])
    with_cuts = lb.solve(problem, node_limit=3_000_000, time_limit=600, jobs=1)
    monkeypatch.setattr("layerbounds.search.quantization.grid_units.prepare_cuts", lambda prep: None)
    without = lb.solve(problem, node_limit=3_000_000, time_limit=600, jobs=1)
    assert with_cuts.lower_bound[0] <= min(with_cuts.upper_bound[0], without.upper_bound[0])
    assert with_cuts.lower_bound[0] > without.lower_bound[0]
