"""Certificates of rows that share a mask, masks of units and choices of output channels, against all choices tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import correct
from certificates.incorrect import forge

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.problems.filters import FilterProblem
from layerbounds.problems.problem import Problem
from layerbounds.problems.stored import restored_problem, stored_problem
from layerbounds_verify.bounds import errors, is_semidefinite
from layerbounds_verify.choices import charge, masks
from layerbounds_verify.units import _Rows


def _masks(problem: Problem) -> Iterator[Float]:
    """All full choices of kept weights, shape (rows, n)."""
    rows, n = problem.layer.out_features, problem.layer.in_features
    if isinstance(problem, FilterProblem):
        for kept in combinations(range(rows), problem.kept):
            mask = np.zeros((rows, n), dtype=bool)
            mask[list(kept)] = True
            yield mask
        return
    structure = problem.structure
    groups = [np.flatnonzero(structure.group == g).tolist() for g in range(len(structure.capacity))]
    # Masks that keep weights as they are may be better with fewer.
    sizes = [range(int(c) + 1) for c in structure.capacity]
    for counts in product(*sizes):
        for choice in product(*(combinations(g, c) for g, c in zip(groups, counts, strict=True))):
            kept = np.isin(structure.unit, [u for part in choice for u in part])
            yield np.tile(kept, (rows, 1))


def _optimum(problem: Problem) -> float:
    """The least error of all output channels together, by trying everything."""
    layer = problem.layer
    gram, w, rows = layer.channel_gram(0).astype(np.longdouble), layer.matrix, layer.out_features
    metric = problem.metric(0) if isinstance(problem, FilterProblem) else None
    metric = np.eye(rows) if metric is None else metric
    whole = np.kron(metric, gram.astype(np.float64))
    best = np.inf
    for mask in _masks(problem):
        v = np.where(mask, w, 0.0)
        if problem.refit and mask.any():
            kept = np.flatnonzero(mask)
            pull = whole[kept] @ w.ravel()
            v.flat[kept] = np.linalg.lstsq(whole[np.ix_(kept, kept)], pull, rcond=None)[0]
        deviation = (v - w).astype(np.longdouble)
        best = min(best, float(np.sum((metric @ deviation) * (deviation @ gram))))
    return best


def _small() -> dict[str, tuple[Problem, Callable[..., Any] | None]]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 6)) + rng.normal(size=(30, 1))
    layer = lb.Layer(rng.normal(size=(3, 6)), x.T @ x / 30, "toy")
    y = rng.normal(size=(9, 3))
    found: dict[str, tuple[Problem, Callable[..., Any] | None]] = {}
    for refit in (True, False):
        columns = lb.pruning_problem(layer, k=3, pattern="column", refit=refit)
        heads = lb.pruning_problem(layer, k=2 if refit else 1, pattern="head:2", refit=refit)
        filters = lb.pruning_problem(layer, k=1, pattern="filter", refit=refit)
        bound = lb.pruning_problem(layer, k=1, pattern="filter", refit=refit, output_metric=y.T @ y)
        word = "refit" if refit else "mask"
        found |= {
            f"columns {word}": (columns, None),
            f"heads {word}": (heads, None),
            f"channels {word}": (bound, None),
            f"heads {word}, dual": (heads, correct.of_rows if refit else correct.of_mask),
            f"heads {word}, clusters": (heads, correct.of_clusters if refit else correct.of_mask_blocks),
            f"channels {word}, dual": (bound, correct.of_channels if refit else correct.of_mask),
            f"filters {word}": (filters, correct.of_channels),
        }
    return found


SMALL = _small()


def _written(name: str, path: Path) -> lb.Solution:
    problem, make = SMALL[name]
    solution = lb.solve(problem, jobs=1, node_limit=10**6) if make is None else correct.by_dual(problem, make)
    solution.save_certificate(path)
    return solution


@pytest.mark.parametrize("name", SMALL)
def test_lower_ends_are_below_all_choices(tmp_path: Path, name: str) -> None:
    solution = _written(name, tmp_path / "c.safetensors")
    report = lb.verify(tmp_path / "c.safetensors")
    assert report, report.text()
    optimum = _optimum(solution.problem)
    assert report.channels[0].lower_bound <= optimum * (1 + 1e-12)
    assert optimum * (1 - 1e-12) <= report.channels[0].upper_bound
    if SMALL[name][1] is None:
        assert report.channels[0].lower_bound >= optimum * (1 - 1e-6)


def _spoil(tensors: dict[str, Any], rng: np.random.Generator) -> None:
    """Change some numbers of a proof."""
    names = [name for name in sorted(tensors) if name.startswith("proof.") and tensors[name].size]
    for _ in range(rng.integers(1, 4)):
        name = names[rng.integers(len(names))]
        array = tensors[name]
        place = rng.integers(array.size)
        if array.dtype.kind == "i":
            array.flat[place] += rng.integers(-2, 3)
        else:
            factor = rng.choice([0.0, -1.0, 0.5, 1.01, 1.0 - 1e-6, 1.0 + 1e-6, 2.0])
            if rng.random() < 0.3:
                array *= factor
            else:
                array.flat[place] *= factor


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith("filters")])
def test_whatever_is_accepted_is_below_all_choices(tmp_path: Path, name: str) -> None:
    path, rng = tmp_path / "c.safetensors", np.random.default_rng(11)
    optimum = _optimum(_written(name, path).problem)
    original, accepted = path.read_bytes(), 0

    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors["solution.lower_bound"][:] = -1e9
        _spoil(tensors, rng)

    for _ in range(30):
        path.write_bytes(original)
        forge(path, change)
        report = lb.verify(path)
        if report:
            accepted += 1
            assert report.channels[0].lower_bound <= optimum * (1 + 1e-12)
    assert accepted > 3


def test_filter_problems_are_stored() -> None:
    for name in ("channels refit", "filters mask"):
        problem = SMALL[name][0]
        assert isinstance(problem, FilterProblem)
        tensors, values = stored_problem(problem)
        found = restored_problem(problem.layer, tensors, values)
        assert isinstance(found, FilterProblem) and found.fingerprint() == problem.fingerprint()


def test_the_form_of_masks_is_below_the_error() -> None:
    """Also where kept weights are not what they stand for, and units change nothing."""
    rng = np.random.default_rng(8)
    for trial in range(20):
        n, rows = 5, int(rng.integers(1, 4))
        x = rng.normal(size=(12, n)) * 10.0 ** rng.integers(-6, 3, n)
        gram, w = x.T @ x, rng.normal(size=(rows, n))
        kept = w if trial % 2 else w + 0.1 * rng.normal(size=w.shape)
        kept = np.where(rng.random(w.shape) < 0.2, 0.0, kept)
        kept[:, trial % n] *= trial % 3
        unit = np.array([0, 1, 1, 2, 0])
        matrix, t, constant = masks(gram, np.eye(rows), kept.T, w.T, unit)
        least = np.inf
        for y in product((0.0, 1.0), repeat=3):
            error = sum(errors(gram, w, kept * np.array(y)[unit]))
            step = np.array(y) - t
            value = float(constant) + step @ matrix @ step
            least = min(least, value)
            dropped = np.array([y[u] if np.any(kept[:, unit == u]) else 0.0 for u in range(3)])
            own = float(constant) + (dropped - t) @ matrix @ (dropped - t)
            assert abs(own - float(error)) <= 1e-12 * (float(error) + np.abs(matrix).sum())


def test_other_rows_differ_by_no_more_than_is_charged() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(9, 6)), rng.normal(size=(9, 4))
    gram, metric, w = x.T @ x, y.T @ y, rng.normal(size=(4, 6))
    lower = np.linalg.cholesky(w @ gram @ w.T).T
    for scale in (1e-9, 1e-4, 1e-2):
        rows = lower * (1.0 + scale * rng.normal(size=lower.shape))
        off = float(charge(gram, w, metric, rows))
        inner = np.linalg.inv(metric)
        for kept in ([0], [1, 2], [0, 1, 3]):
            dropped = [r for r in range(4) if r not in kept]
            least = np.linalg.inv(inner[np.ix_(dropped, dropped)])
            sums = [np.trace((m.T @ m)[np.ix_(dropped, dropped)] @ least) for m in (rows, lower)]
            assert abs(sums[0] - sums[1]) <= off * (1 + 1e-9) + 1e-12 * abs(sums[0])


def test_what_a_search_did_not_close_is_proven_too(tmp_path: Path) -> None:
    """A node limit leaves the interval open; the tree that proves its lower end is another one."""
    problem = lb.pruning_problem(correct.layer(48, 4, dead=False, seed=6), k=6, pattern="head:2")
    solution = lb.solve(problem, jobs=1, node_limit=3)
    assert solution.lower_bound[0] < solution.upper_bound[0] * (1 - 1e-3)
    solution.save_certificate(tmp_path / "c.safetensors")
    report = lb.verify(tmp_path / "c.safetensors")
    assert report and report.channels[0].kind == "leaves", report.text()
    forge(tmp_path / "c.safetensors", lambda t, a: t.update({"solution.lower_bound": solution.upper_bound}))
    assert "is claimed" in lb.verify(tmp_path / "c.safetensors").channels[0].reason


@pytest.mark.parametrize("refit", [True, False], ids=["refit", "mask"])
@pytest.mark.parametrize("pattern", ["column", "head:2", "block:2", "filter"])
@pytest.mark.parametrize("rank", [2, 5])
def test_singular_problems_are_proven(tmp_path: Path, rank: int, pattern: str, refit: bool) -> None:
    """Where nothing positive lies below the Gram matrix, leaves are bounded exactly."""
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(30, rank)) @ rng.normal(size=(rank, 8))
    layer = lb.Layer(rng.normal(size=(3, 8)), x.T @ x / 30, "toy")
    metric = np.ones((3, 3)) + (0.1 if refit else 0.0) * np.eye(3)
    more: dict[str, Any] = {"k": 1, "output_metric": metric} if pattern == "filter" else {"density": 0.5}
    solution = lb.solve(lb.pruning_problem(layer, pattern=pattern, refit=refit, **more), jobs=1, time_limit=20.0)
    solution.save_certificate(tmp_path / "c.safetensors")
    report = lb.verify(tmp_path / "c.safetensors")
    assert report, report.text()
    for found, lower in zip(report.channels, solution.lower_bound, strict=True):
        assert found.lower_bound >= lower * (1 - 1e-9)


def test_masks_of_small_errors_are_proven_to_the_last_digit(tmp_path: Path) -> None:
    """The form of masks is charged for rounding of the size of the energy; decided masks are not."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 8)) * 10.0 ** np.array([3, 3, 3, 3, -1, -1, -1, -1])
    problem = lb.pruning_problem(
        lb.Layer(rng.normal(size=(2, 8)), x.T @ x / 30, "toy"), k=5, pattern="column", refit=False
    )
    solution = lb.solve(problem, jobs=1)
    solution.save_certificate(tmp_path / "c.safetensors")
    report = lb.verify(tmp_path / "c.safetensors")
    assert report and report.channels[0].lower_bound >= solution.lower_bound[0] * (1 - 1e-15)
    assert solution.upper_bound[0] < 1e-7 * solution.energy[0]


def _fractions(matrix: Any) -> Any:
    return np.vectorize(Fraction, otypes=[object])(np.asarray(matrix, dtype=np.float64))


def _solved(matrix: Any, right: Any) -> Any:
    """The exact solution of a system, by elimination."""
    a = np.concatenate([matrix, right], axis=1)
    n = len(matrix)
    for k in range(n):
        pivot = next(i for i in range(k, n) if a[i, k])
        a[[k, pivot]] = a[[pivot, k]]
        a[k] = a[k] / a[k, k]
        for i in range(n):
            if i != k:
                a[i] = a[i] - a[i, k] * a[k]
    return a[:, n:]


def test_leaves_of_units_are_charged_for_rounding() -> None:
    """What is computed in float64 against the same in fractions, for points that are far from the best one as well."""
    rng = np.random.default_rng(12)
    unit = np.array([0, 0, 1, 1, 1, 2])
    for trial in range(60):
        x = rng.normal(size=(8, 6)) * 10.0 ** rng.integers(-4, 5, 6) + 3.0 * (trial % 3) * rng.normal(size=(8, 1))
        gram, w = x.T @ x, rng.normal(size=(6, 2)) / np.sqrt(np.sum(x**2, axis=0))[:, None]
        matrix = np.where(unit[:, None] == unit, gram, 0.0)
        lower = np.linalg.cholesky(matrix)
        matrix *= 0.9 * np.linalg.eigvalsh(np.linalg.solve(lower, np.linalg.solve(lower, gram).T))[0]
        matrix = np.tril(matrix) + np.tril(matrix, -1).T
        if not is_semidefinite(gram - matrix):
            continue
        inside = np.tril(unit[:, None] == unit)
        zeta = np.array([rng.uniform(0.05, 1.0), 1.0, rng.choice([0.0, 0.3])])
        rows = _Rows(gram, w, unit, matrix[inside][None])
        value, saving, off = rows.at(zeta, rows.blocks(matrix[inside]))
        # The same point, and everything else exactly.
        f = np.flatnonzero((zeta > 0.0)[unit])
        kept = np.where(zeta == 1.0, 2.0**-20, 1.0)[unit[f]]
        block = matrix[np.ix_(f, f)] * kept
        u = np.zeros_like(w)
        u[f] = np.linalg.solve(gram[np.ix_(f, f)] + block * (1.0 / zeta[unit[f]] - 1.0), (gram @ w)[f])
        h, b, point, target = map(_fractions, (gram, block, u, w))
        g = h @ (point - target)
        c = b @ point[f] - g[f]
        exact = (point[f] * c).sum() - (target * g).sum()
        for k in range(3):
            own = np.flatnonzero(unit[f] == k)
            saved = (c[own] * _solved(b[np.ix_(own, own)], c[own])).sum() if len(own) else Fraction(0)
            assert Fraction(float(saving[k])) >= saved
        assert abs(Fraction(value) - exact) <= Fraction(off)
        if trial % 3 == 0:
            assert off <= 1e-11 * float(np.sum((w.T @ gram) * w.T))
