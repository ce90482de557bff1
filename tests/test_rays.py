"""The ray tree: nothing below a cut at any scale is lost, and what is found is the best."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from layerbounds.arrays import Float
from layerbounds.kernels.quantization.rays import enumerate_rays
from layerbounds.search.quantization.preparation import prepare
from layerbounds.search.scale.allowance import ray_allowance
from layerbounds.search.scale.cells import cells, largest_scale, least_of_smaller
from layerbounds.search.scale.rays import RayTree, make_ray

KINDS = ("integers", "one side", "binary", "uneven")


def _instance(rng: np.random.Generator, kind: str) -> tuple[Float, Float, Float]:
    """Gram matrix, target and codes."""
    n = int(rng.integers(2, 6))
    inputs = rng.normal(size=(n + 3, n))
    if rng.random() < 0.3:
        inputs = inputs * 10.0 ** rng.uniform(-2.0, 1.0, n)
    codes = {
        "integers": np.arange(-2.0, 2.0 + rng.integers(0, 2)),
        "one side": np.arange(4.0) - float(rng.integers(0, 4)),
        "binary": np.array([-1.0, 1.0]),
        "uneven": np.sort(rng.normal(size=4)),
    }[kind]
    return inputs.T @ inputs / len(inputs), rng.normal(size=n), codes


def _best(gram: Float, target: Float, codes: Float) -> float:
    """The least error over all codes and scales, by trying all codes."""
    pull = gram @ target
    best = float(target @ pull)
    for choice in product(codes, repeat=len(target)):
        q = np.array(choice)
        along, square = float(pull @ q), float(q @ gram @ q)
        if along > 0.0 and square > 0.0:
            s = along / square
            best = min(best, float((s * q - target) @ gram @ (s * q - target)))
    return best


def _search(tree: RayTree, ends: Float, cut: float) -> tuple[float, Float | None, float]:
    """Cut in the end, codes found last, and the largest allowance."""
    found, worst = None, 0.0
    energy = float(tree.ray.target @ tree.ray.prep.gram @ tree.ray.target)
    for first, last in ends:
        if tree.enter((float(first), float(last)), cut):
            while not tree.run(500):
                pass
            if tree.found is not None:
                cut, found = tree.cut, tree.found
        worst = max(worst, ray_allowance(tree, cut, energy))
    return cut, found, worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [0.06, 0.2, 0.7])
def test_agreement_with_all_codes(kind: str, width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbounds.search.scale.cells.WIDTH", width)
    rng = np.random.default_rng([KINDS.index(kind), round(100 * width)])
    tried = 0
    for _ in range(8):
        gram, target, codes = _instance(rng, kind)
        best, energy = _best(gram, target, codes), float(target @ gram @ target)
        if best > energy * (1.0 - 1e-3) or best < 1e-9 * energy:
            continue
        tried += 1
        unit = float(np.max(np.abs(target)) / np.max(np.abs(codes)))
        prep = prepare(gram, 1.0)
        tree = RayTree(make_ray(prep, target / unit, codes))
        ends = cells(tree.ray, target[prep.order], unit, best + 0.3 * (energy - best), np.inf, False)
        assert ends is not None
        rng.shuffle(order := np.arange(3))
        for slack in np.array([1e-7, 0.01, 0.3])[order]:
            start = best + slack * (energy - best)
            cut, found, allowance = _search(tree, ends, start / unit**2)
            assert found is not None
            assert cut * unit**2 == pytest.approx(best, rel=1e-9)
            assert allowance < 1e-6 * cut
        # Below the optimum there is nothing.
        _, found, allowance = _search(tree, ends, best * (1.0 - 1e-7) / unit**2)
        assert found is None
    assert tried >= 3


def test_every_choice_below_a_cut_is_returned() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        gram, target, codes = _instance(rng, "integers")
        best, energy = _best(gram, target, codes), float(target @ gram @ target)
        cut = best + 0.05 * (energy - best)
        pull = gram @ target
        expected = set()
        for choice in product(codes, repeat=len(target)):
            q = np.array(choice)
            along, square = float(pull @ q), float(q @ gram @ q)
            if along > 0.0 and energy - along**2 / square < cut:
                expected.add(choice)
        prep = prepare(gram, 1.0)
        tree = RayTree(make_ray(prep, target, codes))
        ends = cells(tree.ray, target[prep.order], 1.0, cut, np.inf, False)
        assert ends is not None
        found = set()
        for first, last in ends:
            done = not tree.enter((float(first), float(last)), cut)
            while not done:
                done = tree.run(10**6, collect=True)
                leaf = tree.take()
                if leaf is not None:
                    assert tree.cut == cut
                    in_order = np.empty(len(leaf))
                    in_order[prep.order] = leaf
                    found.add(tuple(in_order))
        assert found == expected


def test_scales_beyond_the_cells_are_worse() -> None:
    rng = np.random.default_rng(6)
    for kind in KINDS:
        gram, target, codes = _instance(rng, kind)
        prep = prepare(gram, 1.0)
        ray = make_ray(prep, target, codes)
        energy = float(target @ gram @ target)
        cut = 0.5 * (_best(gram, target, codes) + energy)
        most = largest_scale(ray, target[prep.order], cut, np.inf)
        small = [(t, least_of_smaller(ray, t)) for t in (0.5, 2.0, 10.0, 1e3)]
        for choice in product(codes, repeat=len(target)):
            q = np.array(choice)
            for scale in (most, 1.5 * most, 100.0 * most):
                if np.any(q):
                    assert float((scale * q - target) @ gram @ (scale * q - target)) >= cut
            for t, bound in small:
                for scale in (1.0 / t, 0.3 / t, 1e-3 / t):
                    assert float((scale * q - target) @ gram @ (scale * q - target)) >= bound
        assert small[-1][1] > 0.9 * energy


def test_a_search_goes_on_where_it_stopped() -> None:
    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(40, 14))
    gram, target, codes = inputs.T @ inputs / 40, rng.normal(size=14), np.arange(-2.0, 2.0)
    counts = []
    for chunk in (1, 7, 10**9):
        tree = RayTree(make_ray(prepare(gram, 1.0), target, codes))
        assert tree.enter((0.5, 3.0), 0.5 * float(target @ gram @ target))
        while not tree.run(chunk):
            pass
        counts.append((int(tree.nodes[0]), tree.cut, tuple(tree.found if tree.found is not None else ())))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] > 30


def test_tilts_where_the_minorant_is_zero() -> None:
    """A term without curvature is least at an end of the box, not at the centre."""
    rng = np.random.default_rng(8)
    for _ in range(20):
        gram, target, codes = _instance(rng, "integers")
        best, energy = _best(gram, target, codes), float(target @ gram @ target)
        if not 1e-9 * energy < best < 0.999 * energy:
            continue
        prep = prepare(gram, 1.0)
        flat = prep.minorants.copy()
        flat[:, ::2] = 0.0
        object.__setattr__(prep, "minorants", flat)
        tree = RayTree(make_ray(prep, 3.0 * target, codes))
        ends = np.exp(np.arange(-6.0, 6.0, 0.3))
        cut, found, _ = _search(tree, np.stack([ends[:-1], ends[1:]], axis=1), 9.0 * best * (1.0 + 1e-7))
        assert found is not None
        assert cut == pytest.approx(9.0 * best, rel=1e-8)


def test_the_kernel_is_compiled_once() -> None:
    assert len(enumerate_rays.signatures) <= 1
