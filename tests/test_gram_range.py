"""Scales fitted to the output error, and what `evaluate` says about weights off the grid."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError
from layerbounds.problems.gram_range import fitted_grid, gram_grid
from layerbounds.problems.grids import Granularity


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    """Four channels of fourteen correlated inputs, one of them dead."""
    x = np.maximum(rng.normal(size=(90, 14)) @ rng.normal(size=(14, 14)), 0.0)
    x[:, 3] = 0.0
    return lb.Layer(rng.normal(size=(4, 14)), x.T @ x / 90, "correlated")


def searched_errors(layer: lb.Layer, grid: lb.Grid) -> np.ndarray:
    """Errors of the beam search that the range itself uses, polished."""
    problem = lb.quantization_problem(layer, grid=grid)
    evaluation = lb.evaluate(problem, lb.run_heuristic("beam", problem, width=32))
    assert evaluation.feasible.all()
    return evaluation.error


def optima(layer: lb.Layer, grid: lb.Grid) -> np.ndarray:
    solution = lb.solve(lb.quantization_problem(layer, grid=grid), time_limit=60.0, jobs=1)
    assert all(status == "optimal" for status in solution.status)
    return solution.upper_bound


@pytest.mark.parametrize("granularity", ["channel", 4, 5, "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_optimum_is_not_worse_than_with_the_scales_of_least_weight_error(
    layer: lb.Layer, bits: int, symmetric: bool, granularity: Granularity
) -> None:
    # With 13 live inputs the search itself finds the optimum at the scales of "mse".
    before = fitted_grid(layer, bits, symmetric=symmetric, granularity=granularity)
    after = gram_grid(layer, bits, symmetric=symmetric, granularity=granularity)
    old, new = optima(layer, before), optima(layer, after)
    if granularity == "tensor":
        assert new.sum() <= old.sum() * (1 + 1e-9)
        assert len(np.unique(after.scale)) == 1
    else:
        assert np.all(new <= old * (1 + 1e-9))
    assert new.sum() < (1.0 if granularity == "tensor" else 0.9) * old.sum() or bits == 1
    np.testing.assert_array_equal(after.zero_point, before.zero_point)
    np.testing.assert_array_equal(after.codes, before.codes)
    assert after.label == before.label.replace(", mse", ", gram")


def test_the_best_of_all_scales_is_nearly_found(rng: np.random.Generator) -> None:
    # All code vectors of five inputs, each at its best scale.
    x = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5))
    layer = lb.Layer(rng.normal(size=(3, 5)), x.T @ x / 40)
    codes = np.array(list(product(range(-2, 2), repeat=5)), dtype=float)
    found = optima(layer, gram_grid(layer, 2))
    curvature = np.einsum("ij,ij->i", codes @ layer.gram[0], codes)
    for c, target in enumerate(layer.target):
        energy = target @ layer.gram[0] @ target
        slope = np.maximum(codes @ layer.gram[0] @ target, 0.0)
        best = energy - np.max(np.divide(slope**2, curvature, where=curvature > 0, out=np.zeros_like(slope)))
        assert found[c] == pytest.approx(best, rel=1e-9)


def test_codebooks(layer: lb.Layer) -> None:
    for name in ("nf4", "ternary", "binary", "mxfp4"):
        old = optima(layer, lb.codebook_grid(layer.weight, name))
        grid = gram_grid(layer, codebook=name)
        assert np.all(optima(layer, grid) <= old * (1 + 1e-9))
        if name == "mxfp4":
            np.testing.assert_array_equal(np.log2(grid.scale), np.rint(np.log2(grid.scale)))


def test_groups_have_their_own_gram(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 50, 6)) @ rng.normal(size=(2, 6, 6))
    grams = np.einsum("gki,gkj->gij", x, x) / 50
    weight = rng.normal(size=(4, 6))
    together = gram_grid(lb.Layer(weight, grams), 2).scale
    for g in range(2):
        rows = slice(2 * g, 2 * g + 2)
        np.testing.assert_array_equal(gram_grid(lb.Layer(weight[rows], grams[g]), 2).scale, together[rows])


def test_degenerate_layers(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(2, 5))
    dead = lb.Layer(weight, np.zeros((5, 5)))
    np.testing.assert_array_equal(gram_grid(dead, 3).scale, lb.uniform_grid(weight, 3).scale)
    singular = lb.Layer(weight, np.ones((5, 5)))
    tiny = lb.Layer(weight * 1e-8, np.ones((5, 5)) * 1e-12)
    for layer in (singular, tiny, lb.Layer(np.zeros((2, 5)), np.eye(5))):
        grid = gram_grid(layer, 3, granularity=2)
        assert np.all(np.isfinite(grid.scale)) and np.all(grid.scale > 0)


def test_the_problem_takes_the_range(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, bits=3, range="gram")
    np.testing.assert_array_equal(problem.grid.scale, gram_grid(layer, 3).scale)
    assert "gram" in problem.label
    assert problem.fingerprint() != lb.quantization_problem(layer, bits=3).fingerprint()
    with pytest.raises(InputError, match="pass it to quantization_problem or call gram_grid"):
        lb.uniform_grid(layer.weight, 3, range="gram")
    with pytest.raises(InputError, match="pass it to quantization_problem or call gram_grid"):
        lb.codebook_grid(layer.weight, "nf4", range="gram")
    with pytest.raises(InputError, match="pass either bits or a codebook"):
        gram_grid(layer)


@pytest.mark.parametrize("name", ["linear", "layer1.0.conv1"])
@pytest.mark.slow
def test_real_layers_gain(reference_data: Path, name: str) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")[name]
    part = lb.Layer(layer.weight[:4], layer.gram[0])
    for bits, share in ((2, 0.8), (4, 0.97)):
        old, new = (
            searched_errors(part, lb.uniform_grid(part.weight, bits)),
            searched_errors(part, gram_grid(part, bits)),
        )
        assert new.sum() < share * old.sum()


def test_the_command_line_takes_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    for grid in (["--bits", "2"], ["--codebook", "nf4", "--granularity", "16"]):
        code = main(["solve", "--layer", "conv1", *grid, "--channels", "0:1", "--range", "gram", "--jobs", "1"])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        assert ", gram · backend native" in out.splitlines()[0]


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_says_how_far_weights_are_off() -> None:
    layer = lb.Layer([[0.4, -1.2, 2.0], [1.0, 1.0, 1.0]], np.eye(3))
    problem = lb.quantization_problem(layer, bits=3, scale=[0.5, 1.0])
    on = lb.evaluate(problem, [[0.5, -1.0, 1.5], [1.0, 1.0, 1.0]])
    assert on.feasible.all() and not on.off_grid.any() and not on.steps.any()
    assert on.describe() == "all weights are allowed"
    # A quarter of a step inside, and one and a half steps beyond the last level.
    off = lb.evaluate(problem, [[0.5, -0.875, 2.25], [1.0, 1.0, 0.875]])
    np.testing.assert_array_equal(off.off_grid, [2, 1])
    np.testing.assert_allclose(off.steps, [1.5, 0.125])
    np.testing.assert_allclose(off.violation, [0.75, 0.125])
    assert off.describe() == "3 weights off the grid, by at most 0.75 (1.5 of a step)"


def test_float32_weights_are_off_by_rounding_only() -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=3)
    stored = lb.run_heuristic("gptq", problem).astype(np.float32)
    evaluation = lb.evaluate(problem, stored)
    assert not evaluation.feasible.all()
    assert 0 < evaluation.steps.max() < 1e-5
    assert "off the grid" in evaluation.describe()
    again = problem.project(stored.astype(np.float64).reshape(24, -1), list(range(24)))
    np.testing.assert_array_equal(again, lb.run_heuristic("gptq", problem).reshape(24, -1))


def test_evaluate_describes_patterns_that_do_not_hold(layer: lb.Layer) -> None:
    problem = lb.pruning_problem(layer, k=3)
    assert lb.evaluate(problem, layer.weight).describe() == "4 channels not allowed (violation up to 11)"


def test_identical_inputs_do_not_stop_a_fit_of_scales() -> None:
    # Such blocks are nearly singular: rounding leaves conditional variances of zero, or none at all.
    rng = np.random.default_rng(2006)
    grams = [np.array([[7.3, 7.3, -1.5], [7.3, 7.3, -1.5], [-1.5, -1.5, 0.9]])]
    for _ in range(20):
        root = rng.normal(size=(2, 3))
        root[:, 1] = root[:, 0]
        grams.append(root.T @ root)
    for gram in grams:
        layer = lb.Layer(rng.normal(size=(4, 3)), gram)
        problem = lb.quantization_problem(layer, 1, granularity=1, range="gram")
        assert np.all(np.isfinite(problem.grid.scale)) and np.all(problem.grid.scale > 0)
