"""Heuristics are what their papers say: each against an independent form of the published algorithm."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.kernels.quantization.adaround import GAMMA, ZETA
from layerbounds.kernels.quantization.adaround import adaround as train
from layerbounds.kernels.quantization.methods import klein_rounding
from layerbounds.methods.babai_klein import sampling_ratio
from layerbounds.methods.registry import describe_heuristics, find_heuristic, make_view
from layerbounds.methods.specs import choose_methods, parse_method


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    """Five channels of eleven correlated inputs."""
    x = np.maximum(rng.normal(size=(80, 11)) @ rng.normal(size=(11, 11)), 0.0)
    return lb.Layer(rng.normal(size=(5, 11)), x.T @ x / 80, "correlated")


def grids_of(layer: lb.Layer) -> list[lb.QuantizationProblem]:
    return [
        lb.quantization_problem(layer, bits=2),
        lb.quantization_problem(layer, bits=3, symmetric=False, granularity=4),
        lb.quantization_problem(layer, grid=lb.codebook_grid(layer.weight, "nf4")),
    ]


def total_error(problem: lb.QuantizationProblem, name: str, **options: Any) -> float:
    return float(lb.evaluate(problem, lb.run_heuristic(name, problem, **options)).error.sum())


def nearest(levels: Float, x: float) -> float:
    return float(levels[np.argmin(np.abs(levels - x))])


# --- GPTQ ------------------------------------------------------------------------------------------------------------


def test_gptq_back_to_front_without_clipping_is_babais_nearest_plane(layer: lb.Layer) -> None:
    step = 0.11
    problem = lb.quantization_problem(layer, bits=8, scale=np.full(5, step))
    weights = lb.run_heuristic("gptq", problem, damp=0.0, reverse=True)
    assert np.abs(weights).max() < 127 * step
    # Babai on the columns of a basis with this Gram matrix, by Gram–Schmidt, the last column first.
    basis = np.linalg.cholesky(layer.gram[0]).T * step
    for c in range(5):
        residual = basis @ (layer.matrix[c] / step)
        coefficients = np.zeros(11)
        for k in range(10, -1, -1):
            orthogonal = basis[:, k] - basis[:, :k] @ np.linalg.lstsq(basis[:, :k], basis[:, k])[0]
            coefficients[k] = np.rint(residual @ orthogonal / (orthogonal @ orthogonal))
            residual -= coefficients[k] * basis[:, k]
        np.testing.assert_allclose(weights[c], step * coefficients, rtol=1e-14)


@pytest.mark.parametrize("block_size", [1, 3, 5, 64, 1000])
def test_lazy_updates_do_not_change_gptq(block_size: int) -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv2"], bits=3)
    for options in ({}, {"act_order": True}):
        expected = lb.run_heuristic("gptq", problem, block_size=144, **options)
        np.testing.assert_array_equal(lb.run_heuristic("gptq", problem, block_size=block_size, **options), expected)


def test_options_have_the_names_of_other_packages(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, bits=2)
    expected = lb.run_heuristic("gptq", problem, damp=0.3, act_order=True, block_size=4)
    for names in (("percdamp", "actorder", "blocksize"), ("damp_percent", "desc_act", "block_size")):
        options: dict[str, Any] = dict(zip(names, (0.3, True, 4), strict=True))
        np.testing.assert_array_equal(lb.run_heuristic("gptq", problem, **options), expected)
    assert np.any(lb.run_heuristic("gptq", problem) != expected)


def test_channels_side_by_side_get_the_same_weights() -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=3)
    for name in ("gptq", "babai_klein", "obq"):
        one = lb.run_heuristic(name, problem, seed=3)
        np.testing.assert_array_equal(lb.run_heuristic(name, problem, seed=3, jobs=3), one)


# --- inputs of quantized layers: Qronos, GPTAQ -----------------------------------------------------------------------


@pytest.fixture
def mismatched(rng: np.random.Generator) -> tuple[lb.Layer, Float, Float]:
    """A layer whose inputs X̃ are not those, X, that its dense weights w have: |X̃v − Xw|²; and both inputs."""
    exact = np.maximum(rng.normal(size=(80, 9)) @ rng.normal(size=(9, 9)), 0.0)
    seen = exact + rng.normal(size=exact.shape)
    weight = rng.normal(size=(6, 9))
    target = np.linalg.lstsq(seen, exact @ weight.T)[0].T
    constant = np.sum((seen @ target.T - exact @ weight.T) ** 2, axis=0)
    return lb.Layer(weight, seen.T @ seen, target=target, constant=constant), exact, seen


@pytest.mark.parametrize("act_order", [False, True])
def test_qronos_alternates_correction_and_diffusion(act_order: bool, mismatched: tuple[lb.Layer, Float, Float]) -> None:
    layer, exact, seen = mismatched
    order = np.argsort(-np.diag(layer.gram[0]), kind="stable") if act_order else np.arange(9)
    different = 0
    for problem in grids_of(layer):
        weights = lb.run_heuristic("qronos", problem, damp=0.0, act_order=act_order)
        for c in range(6):
            levels, v = problem.grid.levels(c), layer.matrix[c].copy()
            output = exact @ layer.matrix[c]
            for step, t in enumerate(order):
                # Correction: the level that is best beside all other weights as they are now.
                others = np.delete(np.arange(9), t)
                errors = [
                    float(np.sum((seen[:, others] @ v[others] + x * seen[:, t] - output) ** 2)) for x in levels[t]
                ]
                v[t] = levels[t, int(np.argmin(errors))]
                # Diffusion: least squares over the weights still free.
                done, free = order[: step + 1], order[step + 1 :]
                if len(free):
                    v[free] = np.linalg.lstsq(seen[:, free], output - seen[:, done] @ v[done])[0]
            np.testing.assert_array_equal(weights[c], v)
        plain = lb.run_heuristic("gptq", problem, damp=0.0, act_order=act_order)
        different += int(np.any(weights != plain, axis=1).sum())
    assert different > 0


def test_qronos_without_a_mismatch_is_gptq(layer: lb.Layer) -> None:
    for problem in grids_of(layer):
        for options in ({}, {"act_order": True}):
            expected = lb.run_heuristic("gptq", problem, damp=0.0, **options)
            np.testing.assert_array_equal(lb.run_heuristic("qronos", problem, damp=0.0, **options), expected)


def test_damping_pulls_qronos_towards_the_dense_weights(mismatched: tuple[lb.Layer, Float, Float]) -> None:
    layer = mismatched[0]
    problem = lb.quantization_problem(layer, bits=8)
    weights = lb.run_heuristic("qronos", problem, damp=1e6)
    np.testing.assert_array_equal(weights[:, 1:], problem.grid.nearest(layer.matrix)[:, 1:])


def test_gptaq_with_its_rounding_corrected_is_gptq_on_the_target(mismatched: tuple[lb.Layer, Float, Float]) -> None:
    # GPTAQ spreads the error of the output |X̃v − Xw|² over the weights still free, but rounds to the nearest level. The
    # level that is best for that error once the others have answered is the one that GPTQ takes on the target.
    layer, exact, seen = mismatched
    for problem in grids_of(layer):
        weights = lb.run_heuristic("gptq", problem, damp=0.0)
        for c in range(6):
            levels, v, output = problem.grid.levels(c), np.zeros(9), exact @ layer.matrix[c]
            for t in range(9):
                errors = []
                for x in levels[t]:
                    rest = output - seen[:, :t] @ v[:t] - x * seen[:, t]
                    answer = np.linalg.lstsq(seen[:, t + 1 :], rest)[0] if t < 8 else np.zeros(0)
                    errors.append(float(np.sum((seen[:, t + 1 :] @ answer - rest) ** 2)))
                v[t] = levels[t, int(np.argmin(errors))]
            np.testing.assert_array_equal(weights[c], v)


# --- K-CoreQ, ADMM-Q --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "act_order"), [("columns", False), ("activations", True)])
@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_a_beam_of_one_is_gptq(order: str, act_order: bool, damp: float) -> None:
    for name in ("conv3", "fc"):
        problem = lb.quantization_problem(lb.demo_layers()[name], bits=3)
        expected = lb.run_heuristic("gptq", problem, damp=damp, act_order=act_order)
        weights = lb.run_heuristic("beam", problem, width=1, polish=False, order=order, damp=damp)
        np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize("width", [2, 5])
def test_the_beam_keeps_the_best_partial_roundings(layer: lb.Layer, width: int) -> None:
    gram = layer.gram[0]
    damped = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(11)
    for problem in grids_of(layer):
        weights = lb.run_heuristic("beam", problem, width=width, polish=False, order="columns", damp=0.01)
        for c in range(5):
            levels, w = problem.grid.levels(c), layer.matrix[c]

            def least(head: tuple[float, ...], w: Float = w) -> float:
                """What the error is at least, the later weights being real: a Schur complement."""
                t = len(head)
                schur = np.linalg.inv(np.linalg.inv(damped)[:t, :t])
                return float((np.array(head) - w[:t]) @ schur @ (np.array(head) - w[:t]))

            beam: list[tuple[float, ...]] = [()]
            for t in range(11):
                beam = sorted({(*head, x) for head in beam for x in levels[t]}, key=least)[:width]
            np.testing.assert_array_equal(weights[c], beam[0])


def test_admm_q_alternates_ridge_solves_and_rounding(layer: lb.Layer) -> None:
    gram = layer.gram[0]
    scale = np.sqrt(np.diag(gram))
    scaled = gram / np.outer(scale, scale)
    for problem in grids_of(layer):
        options = {"steps": 25, "penalty": 0.05, "growth": 1.2, "every": 2, "polish": False}
        weights = lb.run_heuristic("admm_q", problem, **options)
        for c in range(5):
            levels, w = problem.grid.levels(c), layer.matrix[c]
            q = np.array([nearest(levels[i], w[i]) for i in range(11)])
            u, rho, last = np.zeros(11), 0.05, q
            for step in range(1, 26):
                # Dense weights z of ½|z − w|²_H + ρ/2 |z − q + u|², rounded copies q, scaled dual u.
                z = np.linalg.solve(scaled + rho * np.eye(11), scaled @ (scale * w) + rho * (scale * q - u))
                q = np.array([nearest(levels[i], (z[i] + u[i]) / scale[i]) for i in range(11)])
                u = u + z - scale * q
                if step % 2 == 0:
                    if np.array_equal(q, last) and np.linalg.norm(z - scale * q) <= 1e-4 * np.linalg.norm(scale * w):
                        break
                    last, rho, u = q, 1.2 * rho, u / 1.2
            np.testing.assert_array_equal(weights[c], q)


def test_admm_q_ends_where_no_single_move_helps(layer: lb.Layer) -> None:
    for problem in grids_of(layer):
        before = lb.evaluate(problem, lb.run_heuristic("admm_q", problem, polish=False)).error
        weights = lb.run_heuristic("admm_q", problem)
        final = lb.evaluate(problem, weights).error
        assert np.all(final <= before * (1 + 1e-12))
        for c in range(5):
            for i in range(11):
                for level in problem.grid.levels(c)[i]:
                    moved = weights[c].copy()
                    moved[i] = level
                    assert lb.evaluate(problem, moved[None], [c]).error[0] >= final[c] * (1 - 1e-9)


# --- OBQ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "act_order"), [("columns", False), ("activations", True)])
@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_obq_in_the_order_of_gptq_is_gptq(order: str, act_order: bool, damp: float) -> None:
    for name in ("conv3", "fc"):
        problem = lb.quantization_problem(lb.demo_layers()[name], bits=3)
        expected = lb.run_heuristic("gptq", problem, damp=damp, act_order=act_order)
        np.testing.assert_array_equal(lb.run_heuristic("obq", problem, damp=damp, order=order), expected)


@pytest.mark.parametrize("outliers", [False, True])
def test_obq_is_the_greedy_algorithm(layer: lb.Layer, outliers: bool) -> None:
    outlying = 0
    for problem in grids_of(layer):
        weights = lb.run_heuristic("obq", problem, damp=0.0, outliers=outliers)
        for c in range(5):
            levels, w, free = problem.grid.levels(c), layer.matrix[c].copy(), list(range(11))
            while free:
                # Everything anew from the Gram matrix of the free inputs: no update formula.
                inverse = np.linalg.inv(layer.gram[0][np.ix_(free, free)])
                rounded = np.array([nearest(levels[i], w[i]) for i in free])
                cost = (rounded - w[free]) ** 2 / np.diag(inverse)
                low, high = levels[free, 0], levels[free, -1]
                beyond = (low - w[free] > 0.5 * (levels[free, 1] - low)) | (
                    w[free] - high > 0.5 * (high - levels[free, -2])
                )
                candidates = np.flatnonzero(beyond) if outliers and beyond.any() else np.arange(len(free))
                outlying += int(beyond.any())
                k = int(candidates[np.argmin(cost[candidates])])
                delta = (rounded[k] - w[free[k]]) / inverse[k, k]
                w[free] += inverse[k] * delta
                w[free[k]] = rounded[k]
                del free[k]
            np.testing.assert_array_equal(weights[c], w)
    assert outlying > 0


# --- LDLQ and Klein --------------------------------------------------------------------------------------------------


def test_ldlq_is_linear_feedback_of_the_ldl_decomposition(layer: lb.Layer) -> None:
    gram = layer.gram[0]
    # H = (U + I) D (U + I)ᵀ with U strictly upper triangular.
    flipped = np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    feedback = flipped / np.diag(flipped) - np.eye(11)
    for problem in grids_of(layer):
        weights = lb.run_heuristic("ldlq", problem)
        for c in range(5):
            w, q = layer.matrix[c], np.zeros(11)
            for k in range(11):
                q[k] = nearest(problem.grid.levels(c)[k], w[k] + (w[:k] - q[:k]) @ feedback[:k, k])
            np.testing.assert_array_equal(weights[c], q)
        np.testing.assert_array_equal(weights, lb.run_heuristic("gptq", problem, damp=0.0))


def test_stochastic_rounding_is_unbiased_between_levels() -> None:
    # Every output channel has a random generator of its own.
    layer = lb.Layer(np.tile([0.30, -0.85, 1.0, 9.0], (2000, 1)), np.diag([1.0, 2.0, 3.0, 1.0]))
    problem = lb.quantization_problem(layer, bits=3, scale=np.ones(2000))
    draws = lb.run_heuristic("ldlq", problem, rounding="stochastic")
    assert set(draws[:, 0]) == {0.0, 1.0} and set(draws[:, 1]) == {-1.0, 0.0}
    # Four standard errors of a mean of 2000 draws.
    np.testing.assert_allclose(draws.mean(axis=0)[:2], [0.30, -0.85], atol=4 * 0.5 / math.sqrt(2000))
    assert set(draws[:, 2]) == {1.0} and set(draws[:, 3]) == {3.0}


def test_greedy_passes_never_hurt() -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=2)
    errors = [total_error(problem, "ldlq", reorder=True, greedy_passes=k) for k in (0, 1, 2, 10)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize(("n", "samples"), [(1, 1), (64, 4), (576, 4), (10, 10_000)])
def test_the_temperature_fits_the_number_of_samples(n: int, samples: int) -> None:
    ratio = sampling_ratio(n, samples)
    assert ratio >= 1
    if math.log(samples + 1) < 2 * n:
        assert 2 * n / ratio * (1 + math.log(ratio)) == pytest.approx(math.log(samples + 1))


def test_klein_draws_levels_with_the_published_probabilities() -> None:
    layer = lb.Layer([[0.3]], [[2.0]])
    problem = lb.quantization_problem(layer, bits=2, scale=[1.0])
    # A = log ρ / pivot, the gap being 1.
    probability = np.exp(-math.log(3.0) * (np.array([-2.0, -1.0, 0.0, 1.0]) - 0.3) ** 2)
    probability /= probability.sum()
    view = make_view(problem, [0])
    draws, choice = [], np.zeros(1, dtype=np.int64)
    for u in (np.arange(4000) + 0.5) / 4000:
        klein_rounding(
            np.zeros((1, 1)), np.array([2.0]), view.target, view.levels, view.count, math.log(3.0) / 2.0,
            np.array([u]), choice,
        )  # fmt: skip
        draws.append(int(choice[0]))
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 4000, probability, atol=1e-3)


def test_klein_contains_babai_and_improves_with_samples() -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=3)
    babai = lb.run_heuristic("gptq", problem, act_order=True)
    np.testing.assert_array_equal(lb.run_heuristic("babai_klein", problem, samples=0), babai)
    errors = [total_error(problem, "babai_klein", samples=k, ratio=50.0) for k in (0, 5, 50)]
    assert errors[2] <= errors[1] <= errors[0]
    assert errors[2] < errors[0]


# --- coordinate descent, QuantEase, AdaRound -------------------------------------------------------------------------


def test_quantease_is_cyclic_descent_from_the_dense_weights(layer: lb.Layer) -> None:
    gram = layer.gram[0]
    for problem in grids_of(layer):
        for iterations in (1, 3, 4):
            weights = lb.run_heuristic("quantease", problem, iterations=iterations)
            for c in range(5):
                w, v = layer.matrix[c], layer.matrix[c].copy()
                for sweep in range(1, iterations + 1):
                    for i in range(11):
                        others = np.delete(np.arange(11), i)
                        ideal = (gram[i] @ w - gram[i, others] @ v[others]) / gram[i, i]
                        relaxed = sweep % 3 == 0 and sweep < iterations
                        v[i] = ideal if relaxed else nearest(problem.grid.levels(c)[i], ideal)
                np.testing.assert_array_equal(weights[c], v)


def test_quantease_descends_without_relaxed_sweeps() -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=3)
    errors = [total_error(problem, "quantease", iterations=k, relax_every=0) for k in (1, 2, 4, 25)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(errors))


def test_cyclic_descent_ends_where_no_single_move_helps(layer: lb.Layer) -> None:
    for problem in grids_of(layer):
        for start in ("rtn", "gptq"):
            weights = lb.run_heuristic("coordinate_descent", problem, start=start, moves="cyclic", pairs=False)
            final = lb.evaluate(problem, weights).error
            for c in range(5):
                for i in range(11):
                    for level in problem.grid.levels(c)[i]:
                        moved = weights[c].copy()
                        moved[i] = level
                        assert lb.evaluate(problem, moved[None], [c]).error[0] >= final[c] * (1 - 1e-9)


def test_adaround_is_adam_on_the_rectified_sigmoid(layer: lb.Layer) -> None:
    torch = pytest.importorskip("torch")
    steps, warm, reg, rate = 60, 12, 0.05, 0.02
    grid = lb.uniform_grid(layer.weight, 3)
    w, s = layer.matrix[0], grid.scale[0, 0]
    low = np.clip(np.floor(w / s), -4, 3) * s
    high = np.clip(np.floor(w / s) + 1, -4, 3) * s
    share = train(layer.gram[0], w, low, high, steps, rate, reg, warm, 20.0, 2.0)

    gram, target, floor, ceiling = (torch.tensor(a) for a in (layer.gram[0], w, low, high))
    fraction = torch.where(ceiling > floor, (target - floor) / torch.clamp(ceiling - floor, min=1e-300), 0.5)
    fraction = fraction.clamp(0.0, 1.0)
    variable = (-torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1.0)).requires_grad_()
    adam = torch.optim.Adam([variable], lr=rate)

    def relaxed() -> Any:
        return torch.clamp(torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    for step in range(steps):
        adam.zero_grad()
        h = relaxed()
        deviation = floor + h * (ceiling - floor) - target
        loss = deviation @ gram @ deviation
        if step >= warm:
            beta = 2.0 + 0.5 * 18.0 * (1.0 + math.cos(math.pi * (step - warm) / (steps - warm)))
            free = ceiling > floor
            loss = loss + reg * (1.0 - (2.0 * h[free] - 1.0).abs().pow(beta)).sum()
        loss.backward()
        adam.step()
    free = high > low
    np.testing.assert_allclose(share[free], relaxed().detach().numpy()[free], rtol=1e-9, atol=1e-9)


def test_adaround_rounds_to_the_levels_around_each_weight() -> None:
    layer = lb.demo_layers()["conv3"]
    problem = lb.quantization_problem(layer, bits=3)
    weights = lb.run_heuristic("adaround", problem, iterations=2000).reshape(24, -1)
    step = problem.grid.scale[:, :1]
    levels = np.clip(layer.matrix / step, -4, 3)
    assert np.all(np.abs(weights / step - levels) < 1 + 1e-9)
    assert lb.evaluate(problem, weights).error.sum() < total_error(problem, "rtn")


# --- capabilities and method strings ---------------------------------------------------------------------------------


def test_all_families_are_in_one_registry(layer: lb.Layer) -> None:
    pruning = lb.pruning_problem(layer, k=4)
    block = lb.pruning_problem(layer, k=4, pattern="block:2")
    grid = lb.quantization_problem(layer, bits=2)
    joint = lb.joint_problem(layer, bits=2, k=4)
    shared = lb.pruning_problem(layer, k=4, pattern="column")
    problems = {"p": pruning, "b": block, "g": grid, "j": joint, "s": shared}
    names = {p: {s.heuristic.name for s in choose_methods(q, None)} for p, q in problems.items()}
    assert names["p"] | names["g"] | names["j"] | names["s"] == set(lb.heuristics())
    assert names["g"] & names["j"] == {"lns"} and not names["p"] & names["j"]
    assert not names["p"] & names["g"]
    assert names["p"] - names["b"] == names["p"] - names["s"] == {"sparsegpt", "thanos", "fistapruner"}
    assert names["s"] - names["p"] == {"forward", "osscar", "lasso", "thinet"}
    for entry in describe_heuristics():
        prunes = any("pruning" in kind for kind in entry.capabilities)
        assert bool(entry.patterns) == prunes
    assert lb.pruning_problem(layer, pattern="2:4").pattern_kind == "N:M"
    assert block.pattern_kind == "block"
    for problem in (pruning, block, grid):
        for spec in choose_methods(problem, None):
            lb.run_heuristic(
                spec.heuristic.name, problem, channels=[0], **({"rounds": 2} if spec.heuristic.name == "lns" else {})
            )
    with pytest.raises(UnsupportedProblemError, match="cannot treat pruning with refit"):
        find_heuristic("gptq", pruning)


def test_methods_are_read_with_options() -> None:
    spec = parse_method("gptq:actorder=true:percdamp=0.1")
    assert spec.options == {"act_order": True, "damp": 0.1}
    assert spec.label == "gptq act_order=true damp=0.1"
    assert parse_method("ldlq:rounding=stochastic").options == {"rounding": "stochastic"}
    assert parse_method("lns:rounds=3").options == {"rounds": 3}
    assert parse_method("beam").label == "beam"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gptg", "did you mean gptq"),
        ("gptq:damp", "cannot be read at 'damp'"),
        ("gptq:width=3", "no option 'width'"),
        ("gptq:damp=high", "option 'damp' is 'high'"),
        ("gptq:act_order=1", "option 'act_order' is 1"),
        ("", "there is no heuristic ''"),
    ],
)
def test_wrong_method_strings_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_method(text)
