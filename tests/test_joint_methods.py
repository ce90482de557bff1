"""Methods for joint problems: allowed weights, what they are in special cases, messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.main import app
from layerbounds.exceptions import InputError, UnknownNameError, UnsupportedProblemError
from layerbounds.methods.registry import find_heuristic
from layerbounds.methods.specs import choose_methods, parse_method, warm_up
from layerbounds.problems.grids import Grid
from layerbounds.search.joint.family import FAMILY

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("prune_then_quantize", {}),
    ("prune_then_quantize", {"prune": "magnitude", "quantize": "rtn", "refit": False, "target": "weights"}),
    ("prune_then_quantize", {"prune": "admm", "quantize": "gptq+act_order=true+damp=0.1"}),
    ("quantize_then_prune", {}),
    ("quantize_then_prune", {"quantize": "rtn", "prune": "magnitude", "requantize": True}),
    ("quantize_then_prune", {"prune": "hard_thresholding", "target": "layer"}),
    ("sparsegpt_joint", {}),
    ("obc", {}),
    ("obr", {}),
    ("lns", {"rounds": 20}),
]
JOINT = ["lns", "prune_then_quantize", "quantize_then_prune", "sparsegpt_joint", "obc", "obr"]
PATTERNS = [{"k": 6}, {"pattern": "2:4"}, {"k": 6, "pattern": "block:3"}]


@pytest.fixture
def layer(rng: np.random.Generator, random_gram: Callable[..., Float]) -> lb.Layer:
    gram = random_gram(14)
    gram[3] = gram[:, 3] = 0.0
    return lb.Layer(rng.normal(size=(2, 14)), gram)


def problems(layer: lb.Layer) -> list[lb.JointProblem]:
    grids: list[dict[str, Any]] = [{"bits": 3}, {"bits": 1}, {"codebook": "nf4"}, {"bits": 2, "symmetric": False}]
    return [lb.joint_problem(layer, **grid, **rules) for grid in grids for rules in PATTERNS]


def run(name: str, problem: lb.JointProblem, options: dict[str, Any]) -> Float | None:
    """None where the method does not treat the pattern."""
    if problem.pattern_kind not in find_heuristic(name).patterns:
        with pytest.raises(UnsupportedProblemError, match="cannot treat block patterns"):
            lb.run_heuristic(name, problem, **options)
        return None
    return lb.run_heuristic(name, problem, **options)


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_allowed_and_the_same_again(name: str, options: dict[str, Any], layer: lb.Layer) -> None:
    for problem in problems(layer):
        weights = run(name, problem, options)
        if weights is None:
            continue
        evaluation = lb.evaluate(problem, weights)
        assert np.all(evaluation.feasible), problem.label
        assert not np.any(weights[:, 3])
        assert np.array_equal(weights, lb.run_heuristic(name, problem, jobs=2, **options))


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_not_below_the_optimum(
    name: str, options: dict[str, Any], rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    for label, problem in FAMILY.examples(lb.Layer(rng.normal(size=(1, 6)), random_gram(6))):
        assert isinstance(problem, lb.JointProblem)
        weights = run(name, problem, options)
        if weights is None:
            continue
        points = np.array([point for point, _, _ in problem.allowed(0).pieces()]) - problem.layer.target[0]
        least = float(np.min(np.einsum("pi,ij,pj->p", points, problem.layer.channel_gram(0), points)))
        assert lb.evaluate(problem, weights).error[0] >= least * (1 - 1e-9) - 1e-12 * problem.layer.energy()[0], label


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
@pytest.mark.parametrize("samples", [1, 4])
def test_singular_gram(
    samples: int, name: str, options: dict[str, Any], rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    layer = lb.Layer(rng.normal(size=(2, 12)), random_gram(12, samples))
    for rules in PATTERNS:
        problem = lb.joint_problem(layer, 2, **rules)  # type: ignore[arg-type]
        weights = run(name, problem, options)
        if weights is None:
            continue
        evaluation = lb.evaluate(problem, weights)
        assert np.all(evaluation.feasible) and np.all(np.isfinite(evaluation.error))


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
@pytest.mark.parametrize("k", [0, 5])
def test_nothing_and_everything_kept(k: int, name: str, options: dict[str, Any], layer: lb.Layer) -> None:
    small = lb.Layer(layer.matrix[:, :5], layer.channel_gram(0)[:5, :5])
    problem = lb.joint_problem(small, 2, k=k)
    weights = lb.run_heuristic(name, problem, **options)
    assert np.all(lb.evaluate(problem, weights).feasible)
    if k == 0:
        assert not np.any(weights)


@pytest.mark.parametrize("quantize", ["rtn", "gptq", "obq", "coordinate_descent"])
@pytest.mark.parametrize("name", ["prune_then_quantize", "quantize_then_prune"])
def test_where_nothing_is_pruned_it_is_the_quantization_method(
    name: str, quantize: str, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    layer = lb.Layer(rng.normal(size=(2, 10)), random_gram(10))
    expected = lb.run_heuristic(quantize, lb.quantization_problem(layer, 3))
    for prune in ("magnitude", "wanda", "obs"):
        weights = lb.run_heuristic(name, lb.joint_problem(layer, 3, k=10), quantize=quantize, prune=prune)
        assert np.array_equal(weights, expected)


@pytest.mark.parametrize("rules", PATTERNS, ids=str)
@pytest.mark.parametrize("prune", ["magnitude", "wanda", "obs", "admm"])
def test_where_nothing_is_rounded_it_is_the_pruning_method(prune: str, rules: dict[str, Any], layer: lb.Layer) -> None:
    expected = lb.run_heuristic(prune, lb.pruning_problem(layer, refit=False, **rules))
    problem = lb.joint_problem(layer, weights=layer.weight, **rules)
    for name, options in (
        ("prune_then_quantize", {"refit": False}),
        ("quantize_then_prune", {"target": "layer"}),
        ("quantize_then_prune", {"target": "weights"}),
    ):
        weights = lb.run_heuristic(name, problem, prune=prune, quantize="rtn", **options)
        np.testing.assert_array_equal(weights, expected)


def test_after_a_refit_both_targets_are_one(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(3, 12)), random_gram(12)), 3, k=6)
    layer, weights = (lb.run_heuristic("prune_then_quantize", problem, target=t) for t in ("layer", "weights"))
    np.testing.assert_array_equal(layer, weights)
    blind = lb.run_heuristic("prune_then_quantize", problem, prune="wanda", refit=False, target="weights")
    seeing = lb.run_heuristic("prune_then_quantize", problem, prune="wanda", refit=False, target="layer")
    assert np.sum(lb.evaluate(problem, seeing).error) < np.sum(lb.evaluate(problem, blind).error)


def test_obc_is_obs_and_obq(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(3, 12)), random_gram(12)), 3, pattern="2:4")
    both = lb.run_heuristic("prune_then_quantize", problem, prune="obs", quantize="obq")
    np.testing.assert_array_equal(lb.run_heuristic("obc", problem), both)


def test_one_pass_is_gptq_or_sparsegpt(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    layer = lb.Layer(rng.normal(size=(3, 12)), random_gram(12))
    everything = lb.run_heuristic("sparsegpt_joint", lb.joint_problem(layer, 3, k=12))
    np.testing.assert_array_equal(everything, lb.run_heuristic("gptq", lb.quantization_problem(layer, 3)))
    # On a fine grid that clips nothing rounding changes little.
    step = 4.0 * np.abs(layer.matrix).max() / 4000
    codes = np.arange(-4000.0, 4001.0)
    grid = Grid(codes, np.full((3, 1), step), np.zeros((3, 1)), 12, uniform=True, label="fine")
    fine = lb.joint_problem(layer, grid=grid, pattern="2:4")
    pruned = lb.run_heuristic("sparsegpt", lb.pruning_problem(layer, pattern="2:4"))
    np.testing.assert_allclose(lb.run_heuristic("sparsegpt_joint", fine), pruned, atol=20 * step)


def test_obr_by_its_formulas(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    gram, weight = random_gram(10), rng.normal(size=(1, 10))
    problem = lb.joint_problem(lb.Layer(weight, gram), 3, k=6)
    h = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(10)
    order = np.argsort(-np.abs(weight[0]) * np.sqrt(np.diag(gram)))
    kept, dropped = np.sort(order[:6]), np.sort(order[6:])
    w = weight[0, kept] + np.linalg.solve(h[np.ix_(kept, kept)], h[np.ix_(kept, dropped)] @ weight[0, dropped])
    levels = np.asarray(problem.grid.allowed(0).values)
    v = np.zeros(10)
    for i in range(3):
        v[kept[i]] = levels[kept[i]][np.argmin(np.abs(levels[kept[i]] - w[i]))]
    head, tail = kept[:3], kept[3:]
    rest = w[3:] + np.linalg.solve(h[np.ix_(tail, tail)], h[np.ix_(tail, head)] @ (w[:3] - v[head]))
    # GPTQ rounds the others; its first column is not touched by feedback.
    v[tail[0]] = levels[tail[0]][np.argmin(np.abs(levels[tail[0]] - rest[0]))]
    found = lb.run_heuristic("obr", problem)[0]
    np.testing.assert_array_equal(found[kept[:4]], v[kept[:4]])
    assert not np.any(found[dropped])


def test_lns_is_the_best_of_them(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(2, 24)), random_gram(24)), 3, k=10)
    best = lb.evaluate(problem, lb.run_heuristic("lns", problem, rounds=500)).error
    for name in JOINT[1:]:
        assert np.all(best <= lb.evaluate(problem, lb.run_heuristic(name, problem)).error * (1 + 1e-9))


def test_methods_of_one_kind_are_refused_and_the_joint_ones_named(small_layer: lb.Layer) -> None:
    problem = lb.joint_problem(small_layer, 3, k=3)
    for name in lb.heuristics():
        if name in JOINT:
            continue
        with pytest.raises(UnsupportedProblemError) as raised:
            lb.run_heuristic(name, problem)
        assert str(raised.value) == (
            f"heuristic {name!r} cannot treat pruning with quantization; these can: {', '.join(JOINT)}."
        )
    with pytest.raises(UnsupportedProblemError, match="cannot treat pruning with refit; these can: magnitude"):
        lb.run_heuristic("obc", lb.pruning_problem(small_layer, k=3))
    with pytest.raises(UnsupportedProblemError, match="cannot treat uniform grids; these can: rtn"):
        lb.run_heuristic("obr", lb.quantization_problem(small_layer, 3))
    assert [spec.heuristic.name for spec in choose_methods(problem, None)] == JOINT


def test_stages_are_read_with_their_options(small_layer: lb.Layer) -> None:
    text = "prune_then_quantize:prune=swap+kicks=3:quantize=gptq+actorder=true:refit=false"
    spec = parse_method(text)
    assert spec.label == "prune_then_quantize prune=swap+kicks=3 quantize=gptq+actorder=true refit=false"
    problem = lb.joint_problem(small_layer, 3, k=3)
    warm_up(spec, problem)
    weights = lb.run_heuristic(spec.heuristic.name, problem, **spec.options)
    assert np.all(lb.evaluate(problem, weights).feasible)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("prune_then_quantize:prune=gptq", UnknownNameError, "there is no method to prune 'gptq'"),
        ("quantize_then_prune:quantize=wanda", UnknownNameError, "there is no method to quantize 'wanda'"),
        ("prune_then_quantize:quantize=lns+rounds", InputError, "write NAME\\+OPTION=VALUE"),
        ("prune_then_quantize:quantize=gptq+x=1", InputError, "'gptq' has no option 'x'"),
        ("prune_then_quantize:target=x", InputError, "target is 'x'; choose 'layer' or 'weights'"),
        ("obr:share=2", InputError, "share is 2"),
    ],
)
def test_wrong_options_are_refused(text: str, error: type[Exception], message: str, small_layer: lb.Layer) -> None:
    problem = lb.joint_problem(small_layer, 3, k=3)

    def use() -> None:
        spec = parse_method(text)
        lb.run_heuristic(spec.heuristic.name, problem, **spec.options)

    with pytest.raises(error, match=message):
        use()


def test_the_command_lists_them() -> None:
    result = CliRunner().invoke(app, ["heuristics", "--json", "-"])
    assert result.exit_code == 0
    for name in JOINT:
        assert f'"{name}"' in result.output
    assert "pruning with quantization" in result.output
