"""Heuristics on output channels that share their mask, against the formulas that define them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Bool, Float
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.methods.pruning import PruningView, refit_on
from layerbounds.methods.registry import make_view
from layerbounds.methods.shared.masks import unit_form
from layerbounds.methods.shared.tableau import Tableau

NAMES = ["magnitude", "wanda", "obs", "swap", "hard_thresholding", "admm", "forward", "osscar", "lasso", "thinet"]
NAMES += ["sparseswaps"]
#: Units of unequal sizes, not in order.
UNITS = [0, 2, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 3]

Generator = np.random.Generator


def make_layer(rng: Generator, rows: int, n: int = 14, samples: int = 60) -> lb.Layer:
    x = rng.normal(size=(samples, n)) @ rng.normal(size=(n, n))
    return lb.Layer(rng.normal(size=(rows, n)), x.T @ x / samples)


def view_of(problem: lb.PruningProblem) -> Any:
    return make_view(problem, problem.sets(range(problem.layer.out_features))[0])


def error(view: PruningView, kept: Bool) -> float:
    deviation = refit_on(view, kept[view.structure.unit]) - view.target
    return float(np.sum((deviation @ view.gram) * deviation))


def choices(units: int, k: int) -> list[Bool]:
    return [np.isin(np.arange(units), chosen) for chosen in itertools.combinations(range(units), k)]


def kept_units(problem: lb.PruningProblem, weights: Float) -> list[int]:
    union = np.abs(weights.reshape(len(weights), -1)).max(axis=0, keepdims=True)
    return np.flatnonzero(problem.structure.kept_units(union)[0]).tolist()


# --- what all have in common -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_feasible_and_not_below_the_optimum(name: str, refit: bool, rng: Generator) -> None:
    layer = make_layer(rng, 4)
    gram = layer.gram[0].copy()
    gram[3] = gram[:, 3] = 0.0
    layer = lb.Layer(layer.weight, gram)
    for how in ({"k": 3, "pattern": UNITS}, {"pattern": "2:4", "share": 3}, {"k": 2, "pattern": "head:4"}):
        problem = lb.pruning_problem(layer, refit=refit, **how)  # type: ignore[arg-type]
        weights = lb.run_heuristic(name, problem, seed=3)
        judged = lb.evaluate(problem, weights)
        assert judged.feasible.all() and len(judged.error) == len(problem.sets(range(4)))
        if refit and name != "wanda":
            # Re-fitted weights are never worse than none.
            energy = np.array([layer.energy()[s].sum() for s in problem.sets(range(4))])
            assert np.all(judged.error <= energy * (1 + 1e-9))
        np.testing.assert_array_equal(lb.run_heuristic(name, problem, seed=3, jobs=2), weights)
        if refit and how.get("k") == 3:
            view = view_of(problem)
            optimum = min(error(view, kept) for kept in choices(6, 3))
            assert judged.error[0] >= optimum * (1 - 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_some_sets_in_any_order(name: str, rng: Generator) -> None:
    problem = lb.pruning_problem(make_layer(rng, 5), pattern="2:4", share=2)
    every = lb.run_heuristic(name, problem)
    np.testing.assert_array_equal(lb.run_heuristic(name, problem, channels=[4, 1, 0]), every[[4, 1, 0]])
    with pytest.raises(InputError, match="share one mask"):
        lb.run_heuristic(name, problem, channels=[1, 2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "kind", ["duplicated", "fewer samples", "one sample", "all dead", "tiny", "huge", "zero weights"]
)
def test_degenerate_layers(name: str, kind: str, rng: Generator) -> None:
    x = rng.normal(size=({"fewer samples": 3, "one sample": 1}.get(kind, 20), 8))
    x *= {"tiny": 1e-8, "huge": 1e8, "all dead": 0.0}.get(kind, 1.0)
    if kind == "duplicated":
        x[:, 1] = x[:, 4] = x[:, 0]
    weight = rng.normal(size=(3, 8)) * (kind != "zero weights")
    layer = lb.Layer(weight, x.T @ x / len(x))
    for how in ({"k": 2, "pattern": "head:3"}, {"pattern": "1:4", "share": "all"}, {"k": 0, "pattern": "column"}):
        problem = lb.pruning_problem(layer, **how)  # type: ignore[arg-type]
        judged = lb.evaluate(problem, lb.run_heuristic(name, problem))
        assert judged.feasible.all() and np.all(np.isfinite(judged.error))
    everything = lb.pruning_problem(layer, k=8, pattern="column")
    assert lb.evaluate(everything, lb.run_heuristic(name, everything)).error[0] <= 1e-9 * layer.energy().sum()


@pytest.mark.parametrize("name", NAMES)
def test_one_row_that_shares_with_none(name: str, rng: Generator) -> None:
    layer = make_layer(rng, 1)
    shared = lb.pruning_problem(layer, k=5, pattern="column")
    weights = lb.run_heuristic(name, shared)
    assert weights.shape == (1, 14) and lb.evaluate(shared, weights).feasible.all()
    if name in ("magnitude", "wanda", "obs", "hard_thresholding", "admm"):
        alone = lb.run_heuristic(name, lb.pruning_problem(layer, k=5))
        np.testing.assert_allclose(weights, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scale_does_not_matter(name: str, rng: Generator) -> None:
    layer = make_layer(rng, 3)
    plain = lb.pruning_problem(layer, k=3, pattern=UNITS)
    scaled = lb.pruning_problem(lb.Layer(2.0**20 * layer.weight, 2.0**-9 * layer.gram[0]), k=3, pattern=UNITS)
    first, second = lb.run_heuristic(name, plain), lb.run_heuristic(name, scaled)
    np.testing.assert_allclose(second, 2.0**20 * first, rtol=1e-6, atol=1e-9)


def test_methods_of_single_channels_are_refused(rng: Generator) -> None:
    with pytest.raises(UnsupportedProblemError, match="cannot treat shared pruning with refit; these can: magnitude"):
        lb.run_heuristic("sparsegpt", lb.pruning_problem(make_layer(rng, 2), k=2, pattern="column"))
    with pytest.raises(UnsupportedProblemError, match="'thinet' cannot treat pruning with refit"):
        lb.run_heuristic("thinet", lb.pruning_problem(make_layer(rng, 2), k=2))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("magnitude", {"norm": 3}, "norm is 3"),
        ("swap", {"start": "lasso"}, "start is 'lasso'"),
        ("osscar", {"swaps": 0}, "swaps 0"),
        ("osscar", {"batch": 0}, "batch is 0"),
        ("osscar", {"damp": -1.0}, "damp is -1"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], words: str, rng: Generator) -> None:
    with pytest.raises(InputError, match=words):
        lb.run_heuristic(name, lb.pruning_problem(make_layer(rng, 2), k=2, pattern="column"), **options)  # type: ignore[arg-type]


# --- each by its definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_is_the_norm_of_all_weights_of_a_unit(norm: int, rng: Generator) -> None:
    layer = make_layer(rng, 4)
    problem = lb.pruning_problem(layer, k=3, pattern=UNITS)
    norms = [np.linalg.norm(layer.matrix[:, np.array(UNITS) == g].ravel(), norm) for g in range(6)]
    weights = lb.run_heuristic("magnitude", problem, norm=norm)
    assert kept_units(problem, weights) == sorted(np.argsort(norms)[3:].tolist())


def test_wanda_is_the_norm_of_weights_times_inputs(rng: Generator) -> None:
    layer = make_layer(rng, 4)
    problem = lb.pruning_problem(layer, k=3, pattern=UNITS)
    score = np.abs(layer.matrix) * np.sqrt(np.diag(layer.gram[0]))
    norms = [np.linalg.norm(score[:, np.array(UNITS) == g]) for g in range(6)]
    weights = lb.run_heuristic("wanda", problem)
    assert kept_units(problem, weights) == sorted(np.argsort(norms)[3:].tolist())
    np.testing.assert_array_equal(weights[weights != 0], layer.matrix[weights != 0])


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_backward_and_forward_take_the_best_step(rows: int, rng: Generator) -> None:
    problem = lb.pruning_problem(make_layer(rng, rows), k=3, pattern=UNITS)
    view = view_of(problem)
    down, up = np.ones(6, dtype=bool), np.zeros(6, dtype=bool)
    for _ in range(3):
        steps = {g: np.where(np.arange(6) == g, False, down) for g in np.flatnonzero(down).tolist()}
        down = steps[min(steps, key=lambda g: error(view, steps[g]))]
        steps = {g: np.where(np.arange(6) == g, True, up) for g in np.flatnonzero(~up).tolist()}
        up = steps[min(steps, key=lambda g: error(view, steps[g]))]
    assert kept_units(problem, lb.run_heuristic("obs", problem)) == np.flatnonzero(down).tolist()
    assert kept_units(problem, lb.run_heuristic("forward", problem, exchanges=False)) == np.flatnonzero(up).tolist()


def test_thinet_drops_what_adds_least(rng: Generator) -> None:
    layer = make_layer(rng, 4)
    problem = lb.pruning_problem(layer, k=3, pattern=UNITS)
    dropped: list[int] = []
    for _ in range(3):
        sizes = {}
        for g in set(range(6)) - set(dropped):
            rows = np.where(np.isin(UNITS, [*dropped, g]), layer.matrix, 0.0)
            sizes[g] = np.sum((rows @ layer.gram[0]) * rows)
        dropped.append(min(sizes, key=lambda g: sizes[g]))
    weights = lb.run_heuristic("thinet", problem)
    assert kept_units(problem, weights) == sorted(set(range(6)) - set(dropped))


def test_the_lasso_solves_its_problem(rng: Generator) -> None:
    problem = lb.pruning_problem(make_layer(rng, 4), k=3, pattern=UNITS)
    matrix, linear = unit_form(view_of(problem))
    # By proximal gradient steps, for λ down a fine path: the last one that leaves three units.
    length = 1.0 / np.linalg.eigvalsh(matrix)[-1]
    factors = np.zeros(6)
    for price in np.max(np.abs(linear)) * 0.97 ** np.arange(400):
        for _ in range(3000):
            moved = factors - length * (matrix @ factors - linear)
            factors = np.sign(moved) * np.maximum(np.abs(moved) - length * price, 0.0)
        if np.count_nonzero(factors) == 3:
            chosen = np.flatnonzero(factors).tolist()
            break
    assert kept_units(problem, lb.run_heuristic("lasso", problem)) == chosen


def test_osscar_without_rounds_is_backward_removal_and_rounds_only_help(rng: Generator) -> None:
    for _ in range(10):
        problem = lb.pruning_problem(make_layer(rng, 3, 20), k=8, pattern="column")
        backward = lb.run_heuristic("obs", problem)
        np.testing.assert_allclose(
            lb.run_heuristic("osscar", problem, damp=0.0, iterations=0), backward, rtol=1e-6, atol=1e-9
        )
        after = lb.evaluate(problem, lb.run_heuristic("osscar", problem, damp=0.0)).error
        assert np.all(after <= lb.evaluate(problem, backward).error * (1 + 1e-9))


@pytest.mark.parametrize("how", [{"k": 3, "pattern": UNITS}, {"pattern": "2:4", "share": "all"}])
def test_swap_ends_where_no_exchange_helps(how: dict[str, Any], rng: Generator) -> None:
    problem = lb.pruning_problem(make_layer(rng, 4), **how)
    view = view_of(problem)
    for start in ("obs", "magnitude", "wanda", "forward"):
        kept = np.isin(
            np.arange(len(view.structure.group)),
            kept_units(problem, lb.run_heuristic("swap", problem, start=start, kicks=3)),
        )
        reached = error(view, kept)
        for i, j in itertools.product(np.flatnonzero(kept), np.flatnonzero(~kept)):
            if view.structure.group[i] == view.structure.group[j]:
                other = kept.copy()
                other[[i, j]] = False, True
                assert error(view, other) >= reached - 1e-10 * problem.layer.energy().sum()


def test_swap_of_masks_ends_where_no_exchange_helps(rng: Generator) -> None:
    problem = lb.pruning_problem(make_layer(rng, 4), k=3, pattern=UNITS, refit=False)
    matrix, linear = unit_form(view_of(problem))
    kept = np.isin(np.arange(6), kept_units(problem, lb.run_heuristic("swap", problem)))
    values = {tuple(y): float(y @ matrix @ y - 2 * linear @ y) for y in np.stack(choices(6, 3)).astype(np.float64)}
    own = values[tuple(kept.astype(np.float64))]
    for y, value in values.items():
        if np.sum(np.array(y) != kept) == 2:
            assert value >= own - 1e-9 * abs(own)


# --- the tableau -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_the_tableau_knows_every_change(rows: int, rng: Generator) -> None:
    view = view_of(lb.pruning_problem(make_layer(rng, rows), k=3, pattern=UNITS))
    table = Tableau(view, np.zeros(6, dtype=bool))
    for units in ([1, 3], [0], [1], [5, 4], [0, 5]):
        table.flip(*units)
        kept, close = table.kept.copy(), 1e-9 * table.energy
        own = error(view, kept)
        assert table.value == pytest.approx(own, abs=close)
        for g in range(6):
            other = kept ^ (np.arange(6) == g)
            change = table.costs()[g] if kept[g] else -table.gains()[g]
            assert change == pytest.approx(error(view, other) - own, abs=close)


def test_the_tableau_stays_true_after_many_sweeps(rng: Generator) -> None:
    view = view_of(lb.pruning_problem(make_layer(rng, 3, 30), k=3, pattern="column"))
    table = Tableau(view, np.zeros(30, dtype=bool))
    for unit in rng.integers(30, size=200).tolist():
        table.flip(unit)
    assert table.value == pytest.approx(error(view, table.kept), abs=1e-9 * table.energy)


def test_the_quadratic_form_of_masks(rng: Generator) -> None:
    layer = make_layer(rng, 3)
    moved = lb.Layer(
        layer.weight, layer.gram[0], target=layer.matrix + rng.normal(size=(3, 14)), constant=[1.0, 2.0, 3.0]
    )
    problem = lb.pruning_problem(moved, k=3, pattern=UNITS, refit=False)
    matrix, linear = unit_form(view_of(problem))
    for kept in choices(6, 3):
        weights = np.where(kept[UNITS], layer.matrix, 0.0)
        value = kept @ matrix @ kept - 2 * linear @ kept + moved.energy().sum()
        assert lb.evaluate(problem, weights).error[0] == pytest.approx(value)
