"""Heuristics: feasible, deterministic, what their papers say, and never better than a certified lower bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError, UnknownNameError
from layerbounds.methods.registry import describe_heuristics
from layerbounds.search.quantization.preparation import factorize_ordered

METHODS = ["rtn", "gptq", "ldlq", "obq", "adaround", "quantease", "coordinate_descent", "babai_klein", "beam"]
METHODS += ["qronos", "admm_q"]
#: Every method with options that change what it does.
VARIANTS = [
    ("rtn", {}),
    ("gptq", {}),
    ("gptq", {"damp": 0.0}),
    ("gptq", {"act_order": True, "block_size": 3}),
    ("ldlq", {"rounding": "stochastic"}),
    ("ldlq", {"reorder": True, "greedy_passes": 2}),
    ("obq", {}),
    ("obq", {"damp": 0.0, "outliers": False}),
    ("adaround", {"iterations": 500}),
    ("quantease", {}),
    ("quantease", {"iterations": 2, "relax_every": 0}),
    ("coordinate_descent", {}),
    ("coordinate_descent", {"moves": "cyclic"}),
    ("coordinate_descent", {"start": "gptq", "pairs": False}),
    ("beam", {}),
    ("babai_klein", {}),
    ("babai_klein", {"samples": 3, "ratio": 2.0, "act_order": False, "damp": 0.0}),
    ("beam", {"width": 3, "polish": False}),
    ("beam", {"width": 5, "polish": False, "order": "activations", "damp": 0.01}),
    ("qronos", {}),
    ("qronos", {"damp": 0.0, "act_order": True}),
    ("admm_q", {}),
    ("admm_q", {"steps": 20, "growth": 1.3, "every": 1, "polish": False}),
]


def gram_of(rng: np.random.Generator, n: int, samples: int) -> Float:
    x = np.maximum(rng.normal(size=(samples, n)) @ rng.normal(size=(n, n)), 0.0)
    return np.asarray(x.T @ x / samples)


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    """Four channels of twelve correlated inputs."""
    return lb.Layer(rng.normal(size=(4, 12)), gram_of(rng, 12, 60), "correlated")


def errors(problem: lb.QuantizationProblem, name: str, **options: object) -> Float:
    evaluation = lb.evaluate(problem, lb.run_heuristic(name, problem, **options))  # type: ignore[arg-type]
    assert evaluation.feasible.all()
    return evaluation.error


def problems_of(layer: lb.Layer) -> list[lb.QuantizationProblem]:
    grids = [
        lb.uniform_grid(layer.weight, 2),
        lb.uniform_grid(layer.weight, 3, granularity=5),
        lb.uniform_grid(layer.weight, 2, symmetric=False),
        lb.codebook_grid(layer.weight, "binary"),
        lb.codebook_grid(layer.weight, "nf4"),
    ]
    return [lb.quantization_problem(layer, grid=g) for g in grids]


# --- registry --------------------------------------------------------------------------------------------------------


def test_registry() -> None:
    assert set(METHODS) <= set(lb.heuristics())
    described = {h.name: h for h in describe_heuristics()}
    assert list(described) == lb.heuristics()
    for entry in described.values():
        assert entry.summary and entry.source and entry.capabilities
    assert described["gptq"].options == {"damp": 0.01, "act_order": False, "block_size": 128, "reverse": False}
    assert described["rtn"].options == {}


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("gptg", {}, UnknownNameError, "did you mean gptq"),
        ("rtn", {"damp": 0.1}, InputError, "no option 'damp'; its options are: none"),
        (
            "gptq",
            {"dampening": 0.1},
            InputError,
            r"no option 'dampening'; did you mean damp\? its options are: damp, act_order, block",
        ),
        ("gptq", {"damp": -0.1}, InputError, "damp is -0.1"),
        ("gptq", {"damp": np.nan}, InputError, "damp is nan"),
        ("beam", {"width": 0}, InputError, "width is 0"),
        ("beam", {"order": "rows"}, InputError, "order is 'rows'"),
        ("beam", {"damp": -1.0}, InputError, "damp is -1.0"),
        ("qronos", {"damp": -1.0}, InputError, "damp is -1.0"),
        ("admm_q", {"penalty": 0.0}, InputError, "penalty 0.0"),
        ("admm_q", {"growth": 0.5}, InputError, "growth 0.5"),
        ("admm_q", {"every": 0}, InputError, "every 0"),
        ("coordinate_descent", {"start": "zero"}, InputError, "start is 'zero'"),
        ("rtn", {"channels": [4]}, InputError, "channels"),
        ("rtn", {"jobs": 0}, InputError, "jobs is 0"),
        ("gptq", {"block_size": 0}, InputError, "block_size is 0"),
        ("gptq", {"damp": 0.1, "percdamp": 0.1}, InputError, "option 'damp' twice"),
        ("coordinate_descent", {"moves": "random"}, InputError, "moves is 'random'"),
        ("ldlq", {"rounding": "up"}, InputError, "rounding is 'up'"),
        ("ldlq", {"greedy_passes": -1}, InputError, "greedy_passes is -1"),
        ("obq", {"order": "random"}, InputError, "order is 'random'"),
        ("adaround", {"iterations": 0}, InputError, "iterations is 0"),
        ("adaround", {"beta_end": 0.5}, InputError, "beta_end 0.5"),
        ("quantease", {"iterations": 0}, InputError, "iterations is 0"),
        ("babai_klein", {"samples": -1}, InputError, "samples is -1"),
        ("babai_klein", {"ratio": 1.0}, InputError, "ratio is 1.0"),
    ],
)
def test_wrong_arguments_are_refused(
    layer: lb.Layer, name: str, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        lb.run_heuristic(name, lb.quantization_problem(layer, bits=3), **options)  # type: ignore[arg-type]


# --- what all have in common -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved() -> list[tuple[lb.QuantizationProblem, lb.Solution]]:
    """Problems on the layer of four channels, with their certified intervals."""
    rng = np.random.default_rng(0)
    layer = lb.Layer(rng.normal(size=(4, 12)), gram_of(rng, 12, 60), "correlated")
    return [(problem, lb.solve(problem, jobs=1)) for problem in problems_of(layer)]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_weights_are_feasible_and_not_below_the_bound(
    solved: list[tuple[lb.QuantizationProblem, lb.Solution]], name: str, options: dict[str, object]
) -> None:
    for problem, solution in solved:
        assert np.all(errors(problem, name, **options) >= solution.lower_bound * (1 - 1e-12))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_results_are_reproducible(layer: lb.Layer, name: str, options: dict[str, object]) -> None:
    problem = lb.quantization_problem(layer, bits=3)
    first = lb.run_heuristic(name, problem, seed=7, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(lb.run_heuristic(name, problem, seed=7, **options), first)  # type: ignore[arg-type]
    picked = lb.run_heuristic(name, problem, channels=[3, 1], seed=7, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(picked, first[[3, 1]])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("kind", ["duplicated", "fewer samples", "one sample", "dead", "all dead", "tiny", "huge"])
def test_degenerate_grams(rng: np.random.Generator, kind: str, name: str, options: dict[str, object]) -> None:
    x = rng.normal(size=({"fewer samples": 3, "one sample": 1}.get(kind, 20), 6))
    x *= {"tiny": 1e-8, "huge": 1e8}.get(kind, 1.0)
    if kind == "duplicated":
        x[:, 1] = x[:, 4] = x[:, 0]
    if kind in ("dead", "all dead"):
        x[:, ::2] = 0.0
    if kind == "all dead":
        x[:] = 0.0
    weight = rng.normal(size=(2, 3, 2, 1))
    layer = lb.Layer(weight, x.T @ x / len(x))
    problem = lb.quantization_problem(layer, bits=2)
    weights = lb.run_heuristic(name, problem, **options)  # type: ignore[arg-type]
    assert weights.shape == weight.shape
    assert lb.evaluate(problem, weights).feasible.all()
    dead = ~layer.live()
    np.testing.assert_array_equal(weights.reshape(2, 6)[:, dead], problem.grid.nearest(layer.matrix)[:, dead])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_zero_weights_stay_zero(rng: np.random.Generator, name: str, options: dict[str, object]) -> None:
    problem = lb.quantization_problem(lb.Layer(np.zeros((1, 5)), gram_of(rng, 5, 20)), bits=3)
    assert not lb.run_heuristic(name, problem, **options).any()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"),
    # The first step of Qronos is about the dense weights.
    [variant for variant in VARIANTS if variant[0] != "qronos"],
)
def test_the_target_counts_and_not_the_weight(rng: np.random.Generator, name: str, options: dict[str, object]) -> None:
    gram = gram_of(rng, 5, 20)
    target = rng.normal(size=(2, 5))
    grid = lb.uniform_grid(target, 3)
    moved = lb.Layer(rng.normal(size=(2, 5)), gram, target=target, constant=[1.0, 2.0])
    plain = lb.run_heuristic(name, lb.quantization_problem(lb.Layer(target, gram), grid=grid), **options)  # type: ignore[arg-type]
    weights = lb.run_heuristic(name, lb.quantization_problem(moved, grid=grid), **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(weights, plain)


def test_groups_use_their_own_gram(rng: np.random.Generator) -> None:
    grams = np.stack([gram_of(rng, 6, 30) for _ in range(2)])
    weight = rng.normal(size=(4, 6))
    for name in METHODS:
        together = lb.run_heuristic(name, lb.quantization_problem(lb.Layer(weight, grams), bits=2))
        for g in range(2):
            rows = slice(2 * g, 2 * g + 2)
            alone = lb.run_heuristic(name, lb.quantization_problem(lb.Layer(weight[rows], grams[g]), bits=2))
            np.testing.assert_array_equal(together[rows], alone)


# --- round-to-nearest ------------------------------------------------------------------------------------------------


def test_rtn_takes_the_nearest_levels(layer: lb.Layer) -> None:
    scale = 0.37
    weights = lb.run_heuristic("rtn", lb.quantization_problem(layer, bits=3, scale=np.full(4, scale)))
    np.testing.assert_allclose(weights, scale * np.clip(np.rint(layer.matrix / scale), -4, 3), rtol=1e-15)


def test_everything_is_rtn_where_inputs_do_not_correlate(rng: np.random.Generator) -> None:
    layer = lb.Layer(rng.normal(size=(3, 6)), np.diag(rng.uniform(0.1, 5.0, 6)))
    problem = lb.quantization_problem(layer, bits=3)
    expected = lb.run_heuristic("rtn", problem)
    for name in METHODS:
        np.testing.assert_array_equal(lb.run_heuristic(name, problem), expected)


# --- GPTQ and Babai --------------------------------------------------------------------------------------------------


def nearest_plane(gram: Float, target: Float, levels: Float, order: Int) -> Float:
    """Babai's nearest plane (with clipping) on the columns of a basis; ``order[-1]`` is rounded first."""
    # Any basis with the Gram matrix will do; its QR decomposition is the Gram–Schmidt process.
    eigenvalues, vectors = np.linalg.eigh(gram[np.ix_(order, order)])
    r = np.linalg.qr((vectors * np.sqrt(eigenvalues)).T, mode="r")
    w = target[order]
    q = np.zeros_like(w)
    for k in range(len(w) - 1, -1, -1):
        centre = w[k] + r[k, k + 1 :] @ (w[k + 1 :] - q[k + 1 :]) / r[k, k]
        row = levels[order[k]]
        q[k] = row[np.argmin(np.abs(row - centre))]
    result = np.empty_like(q)
    result[order] = q
    return result


@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_gptq_is_the_nearest_plane_in_reverse_order(rng: np.random.Generator, n: int) -> None:
    layer = lb.Layer(rng.normal(size=(6, n)), gram_of(rng, n, 4 * n))
    # 8 bits around targets below 4.1: nothing clips.
    problem = lb.quantization_problem(layer, bits=8, scale=np.full(6, 0.15))
    weights = lb.run_heuristic("gptq", problem, damp=0.0)
    assert np.abs(weights).max() < 127 * 0.15
    for c in range(6):
        expected = nearest_plane(layer.gram[0], layer.matrix[c], problem.grid.levels(c), np.arange(n)[::-1])
        np.testing.assert_array_equal(weights[c], expected)


def test_clipping_is_fed_back(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, bits=2)
    weights = lb.run_heuristic("gptq", problem, damp=0.0)
    for c in range(4):
        expected = nearest_plane(layer.gram[0], layer.matrix[c], problem.grid.levels(c), np.arange(12)[::-1])
        np.testing.assert_array_equal(weights[c], expected)
    outermost = problem.grid.levels(0)[0, [0, -1]]
    assert np.isin(weights[0], outermost).any()


def test_gptq_equals_the_column_by_column_algorithm(layer: lb.Layer) -> None:
    # Algorithm 1 of the paper: the upper Cholesky factor of the inverse, errors spread over the later columns.
    problem = lb.quantization_problem(layer, bits=3)
    damped = layer.gram[0] + 0.01 * np.mean(np.diag(layer.gram[0])) * np.eye(12)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    for c, weights in enumerate(lb.run_heuristic("gptq", problem)):
        w = layer.matrix[c].copy()
        levels = problem.grid.levels(c)
        for i in range(12):
            q = levels[i, np.argmin(np.abs(levels[i] - w[i]))]
            w[i:] -= (w[i] - q) / upper[i, i] * upper[i, i:]
            w[i] = q
        np.testing.assert_array_equal(weights, w)


def test_act_order_is_gptq_on_inputs_by_falling_energy(layer: lb.Layer) -> None:
    order = np.argsort(-np.diag(layer.gram[0]))
    assert np.any(order != np.arange(12))
    grid = lb.uniform_grid(layer.weight, 3)
    ordered = lb.Layer(layer.matrix[:, order], layer.gram[0][np.ix_(order, order)])
    expected = lb.run_heuristic("gptq", lb.quantization_problem(ordered, grid=grid))
    weights = lb.run_heuristic("gptq", lb.quantization_problem(layer, grid=grid), act_order=True)
    np.testing.assert_array_equal(weights[:, order], expected)


def test_large_damping_is_rounding_to_nearest(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, bits=3)
    expected = lb.run_heuristic("rtn", problem)
    np.testing.assert_array_equal(lb.run_heuristic("gptq", problem, damp=1e9), expected)
    assert np.any(lb.run_heuristic("gptq", problem) != expected)


def test_damping_grows_where_the_gram_is_singular(rng: np.random.Generator) -> None:
    # Integer inputs, so that the rank is exact and the factorization breaks down.
    x = rng.integers(-3, 4, size=(3, 8)).astype(np.float64)
    x[0] = 1.0
    layer = lb.Layer(rng.normal(size=(3, 8)), x.T @ x)
    problem = lb.quantization_problem(layer, bits=3)
    exact = errors(problem, "gptq", damp=0.0)
    assert np.all(np.isfinite(exact))
    assert np.median(exact) < np.median(errors(problem, "rtn"))


# --- coordinate descent and beam -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("start", ["rtn", "gptq"])
def test_coordinate_descent_is_never_worse_than_its_start(layer: lb.Layer, start: str, pairs: bool) -> None:
    for problem in problems_of(layer):
        before = errors(problem, start)
        after = errors(problem, "coordinate_descent", start=start, pairs=pairs)
        assert np.all(after <= before * (1 + 1e-12))


@pytest.mark.parametrize("pairs", [False, True])
def test_coordinate_descent_ends_where_no_move_helps(layer: lb.Layer, pairs: bool) -> None:
    for problem in problems_of(layer):
        weights = lb.run_heuristic("coordinate_descent", problem, pairs=pairs)
        final = lb.evaluate(problem, weights).error
        for c in range(layer.out_features):
            levels = problem.grid.levels(c)
            moved = []
            for i in range(12):
                for v in levels[i]:
                    moved.append(weights[c].copy())
                    moved[-1][i] = v
            if pairs:
                at = np.argmin(np.abs(levels - weights[c][:, None]), axis=1)
                for i in range(12):
                    for j in range(i):
                        for a in (-1, 1):
                            for b in (-1, 1):
                                if 0 <= at[i] + a < levels.shape[1] and 0 <= at[j] + b < levels.shape[1]:
                                    moved.append(weights[c].copy())
                                    moved[-1][i], moved[-1][j] = levels[i, at[i] + a], levels[j, at[j] + b]
            deviation = np.array(moved) - layer.target[c]
            around = np.einsum("ki,ki->k", deviation @ layer.gram[0], deviation)
            assert around.min() >= final[c] * (1 - 1e-9)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 4.0])
def test_a_beam_of_one_is_the_nearest_plane_in_its_order(layer: lb.Layer, exponent: float) -> None:
    _, order, _, _ = factorize_ordered(layer.gram[0], exponent)
    assert sorted(order) == list(range(12))
    for problem in problems_of(layer):
        weights = lb.run_heuristic("beam", problem, width=1, polish=False, order_exponent=exponent)
        for c in range(4):
            expected = nearest_plane(layer.gram[0], layer.matrix[c], problem.grid.levels(c), order)
            np.testing.assert_array_equal(weights[c], expected)


def test_a_beam_wide_enough_is_exhaustive(layer: lb.Layer) -> None:
    part = lb.Layer(layer.matrix[:, :6], layer.gram[0][:6, :6])
    for problem in problems_of(part)[:4]:
        optimum = lb.solve(problem, jobs=1).upper_bound
        np.testing.assert_allclose(errors(problem, "beam", width=8**6, polish=False), optimum, rtol=1e-9)


def test_polishing_never_hurts(layer: lb.Layer) -> None:
    for problem in problems_of(layer):
        raw = errors(problem, "beam", width=4, polish=False)
        assert np.all(errors(problem, "beam", width=4) <= raw * (1 + 1e-12))


# --- real layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_better_methods_are_better_on_the_demo_layers(bits: int) -> None:
    for name in ("conv2", "conv3", "fc"):
        problem = lb.quantization_problem(lb.demo_layers()[name], bits=bits)
        rtn, gptq, beam = (np.median(errors(problem, method)) for method in ("rtn", "gptq", "beam"))
        assert beam <= gptq <= rtn


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", ["linear", "layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv2"])
def test_gptq_is_better_than_rounding_on_real_layers(reference_data: Path, name: str, bits: int) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")[name]
    problem = lb.quantization_problem(layer, bits=bits)
    assert np.median(errors(problem, "gptq")) <= np.median(errors(problem, "rtn"))
    assert np.median(errors(problem, "coordinate_descent")) <= np.median(errors(problem, "rtn"))
