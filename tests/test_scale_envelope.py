"""Lower bounds over all scales: profiles, dual points, the growing envelope."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

import layerbounds as lb
from layerbounds.arrays import Float, Int
from layerbounds.bounds.least import least
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.scale.dual import Rays, scale_bound
from layerbounds.bounds.scale.profile import Profile, padded
from layerbounds.bounds.scale.projection import project
from layerbounds.exceptions import CertificationError
from layerbounds.kernels import exact
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.proofs import ScaleDual, ScaleMinorant, ScalePoint
from layerbounds.search.scale.envelope import Envelope
from layerbounds.search.scale.group_envelope import GroupEnvelope

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

CODES = {
    "2 bits": [-2.0, -1, 0, 1],
    "binary": [-1.0, 1],
    "unsigned": [0.0, 1, 2, 3],
    "positive": [1.0, 2, 3],
    "ternary": [-1.0, 0, 1],
    "uneven": [-1.0, -0.37, 0.21, 0.7, 1.1],
    "one": [2.0],
}


def terms(d: Float, b: Float, codes: Float, s: Float) -> Float:
    """Σ_i min_c d_i (s c)² − 2 b_i s c at every s, by trying all codes."""
    v = s[:, None, None] * codes
    return np.asarray((d[:, None] * v**2 - 2 * b[:, None] * v).min(axis=2).sum(axis=1))


@pytest.mark.parametrize("kind", [np.float64, np.longdouble])
@pytest.mark.parametrize("name", CODES)
def test_profile_is_the_least_over_all_codes(name: str, kind: type, rng: np.random.Generator) -> None:
    codes = np.array(CODES[name])
    for trial in range(12):
        n = int(rng.integers(1, 7))
        d, b = rng.random(n) * (rng.random(n) < 0.8), rng.normal(size=n) * (rng.random(n) < 0.9)
        if trial % 3 == 0:
            # Breaks at the same scales.
            d, b = np.ones(n), rng.choice([-1.0, 0.5, 1.0], size=n)
        profile = Profile(d.astype(kind), b.astype(kind), padded(codes, n))
        edges = np.asarray(profile.edges[1:], dtype=np.float64)
        scales = np.sort(np.concatenate([np.exp(np.linspace(-4, 4, 401)), edges]))
        ends = [0.0, *np.exp(rng.normal(size=3)), *edges[:3], np.inf]
        for low, high in itertools.combinations_with_replacement(sorted(ends), 2):
            value, at = profile.minimum(low, high)
            inside = scales[(scales >= low) & (scales <= high)]
            size = 1 + float(np.abs(d).sum() + np.abs(b).sum()) * 1e3
            if inside.size:
                assert value <= terms(d, b, codes, inside).min() + 1e-13 * size
            if np.isfinite(value) and np.isfinite(at):
                assert low <= at <= high
                assert value == pytest.approx(float(terms(d, b, codes, np.array([at]))[0]), abs=1e-9 * size)


def test_profile_around_a_scale_stays_above_the_level(rng: np.random.Generator) -> None:
    codes = np.array(CODES["2 bits"])
    for _ in range(60):
        n = int(rng.integers(1, 7))
        profile = Profile(rng.random(n), rng.normal(size=n), padded(codes, n))
        scale = float(np.exp(rng.normal()))
        here = profile.minimum(scale, scale)[0]
        for level in (here - 1e-3 * abs(here), here - 0.1, here + 0.1, -1e6):
            low, high = profile.around(scale, level)
            assert low <= scale <= high
            if level > here:
                assert low == high
            elif low < high:
                assert profile.minimum(low, high)[0] >= level - 1e-9 * (1 + abs(level))


def tree(cuts: Float) -> tuple[Int, Float, Int]:
    """Intervals between sorted cuts, point j on the j-th one."""
    axis, at, child = [], [], []
    for j, cut in enumerate(cuts):
        axis += [0, -1]
        at += [cut, 0.0]
        child += [2 * j + 1, j]
    return np.array([*axis, -1]), np.array([*at, 0.0]), np.array([*child, len(cuts)])


def exact_least(gram: Float, target: Float, points: Float) -> Fraction:
    """Least error over the rays s·q, s ≥ 0, in exact arithmetic for the best ones."""
    pulled, energy = points @ gram @ target, np.einsum("ij,jk,ik->i", points, gram, points)
    gain = np.where((pulled > 0) & (energy > 0), pulled**2 / np.where(energy > 0, energy, 1.0), 0.0)
    w = [Fraction(x) for x in target.tolist()]
    h = [[Fraction(x) for x in row] for row in gram.tolist()]
    n = range(len(w))
    pull = [sum((h[i][j] * w[j] for j in n), Fraction(0)) for i in n]
    start = sum((pull[i] * w[i] for i in n), Fraction(0))
    best = start
    for index in np.argsort(-gain)[:3]:
        q = [Fraction(x) for x in points[index].tolist()]
        a = sum((q[i] * h[i][j] * q[j] for i in n for j in n), Fraction(0))
        b = sum((q[i] * pull[i] for i in n), Fraction(0))
        if a > 0 and b > 0:
            best = min(best, start - b * b / a)
    return best


def best_rounded(gram: Float, target: Float, points: Float) -> float:
    """Least exact error of weights fl(s·q) at the best scales of the best rays."""
    pulled, energy = points @ gram @ target, np.einsum("ij,jk,ik->i", points, gram, points)
    gain = np.where((pulled > 0) & (energy > 0), pulled**2 / np.where(energy > 0, energy, 1.0), 0.0)
    errors = [exact.quadratic_form(gram, target, np.zeros_like(target))]
    for index in np.argsort(-gain)[:3]:
        if gain[index] > 0:
            errors.append(exact.quadratic_form(gram, target, points[index] * (pulled[index] / energy[index])))
    return exact.float_below(min(errors))


INSTANCES = ["random", "ill-conditioned", "proportional", "on the ray", "huge", "tiny", "one input", "singular", "zero"]


def instance(name: str, rng: np.random.Generator) -> tuple[Float, Float, float]:
    """Gram matrix, target, limit."""
    n = 1 if name == "one input" else int(rng.integers(2, 5))
    x = rng.normal(size=(n + 3, n))
    w = rng.normal(size=n)
    limit = np.inf
    if name == "ill-conditioned":
        x *= 10.0 ** -np.arange(n)
    if name == "proportional" and n > 1:
        x[:, 1] = 2 * x[:, 0]
        x += 1e-7 * rng.normal(size=x.shape)
    if name == "singular":
        x = x[:1]
    if name == "on the ray":
        w = 0.37 * rng.integers(-2, 3, size=n)
    if name == "zero":
        w = np.zeros(n)
    w = w * {"huge": 1e120, "tiny": 1e-120}.get(name, 1.0)
    if name == "singular":
        limit = 256 * float(np.abs(w).max())
    return np.asarray(x.T @ x / len(x)), w, limit


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("box", CODES)
def test_bound_holds_for_every_ray_and_every_dual_point(name: str, box: str, rng: np.random.Generator) -> None:
    codes = np.array(CODES[box])
    for _ in range(1 if len(codes) > 3 else 2):
        gram, target, limit = instance(name, rng)
        n = len(target)
        points = np.array(list(itertools.product(codes, repeat=n)))
        inside = points
        if np.isfinite(limit):
            inside = points[:0]
        rays = Rays([codes], np.zeros(n, dtype=np.int64), limit)
        d = maximize_minorant(gram, np.ones(n)) if name != "singular" else 1e-3 * np.diag(gram)
        scale = float(np.abs(target).max()) or 1.0
        z = np.array([np.zeros(n), target, *(scale * rng.normal(size=(3, n)))])
        minorant = ScaleMinorant(d, np.zeros((n, 0)), np.zeros(0))
        parts = tuple(ScalePoint(row[None], 0, np.zeros((1, 0))) for row in z)
        dual = ScaleDual((minorant,), parts, *tree(np.sort(scale * np.exp(rng.normal(size=4)))), np.array([0]))
        envelope = Envelope(gram, target, [codes], scale, float(target @ gram @ target), limit)
        envelope.grow(lambda grown=envelope: grown.size > 5)
        grown = envelope.dual()
        exactly = float("inf") if np.isfinite(limit) else exact.float_below(exact_least(gram, target, points))
        rounded = best_rounded(gram, target, inside) if len(inside) else exactly
        for candidate in (dual, grown):
            if candidate is None:
                assert name in ("proportional", "singular") and envelope.value == 0
                continue
            assert candidate.is_valid(n)
            bound = scale_bound(gram, target, rays, candidate)
            assert 0 <= bound <= exactly
            assert bound <= rounded
            if np.isfinite(limit):
                # The least error of a ray is at its best scale or at the limit.
                energy, pull = np.einsum("ij,jk,ik->i", points, gram, points), points @ gram @ target
                ratio = np.divide(pull, energy, out=np.full_like(pull, scale), where=energy > 0)
                best = np.clip(ratio, 0, limit / np.maximum(np.abs(points).max(axis=1), 1e-9))
                errors = energy * best**2 - 2 * best * pull
                for index in np.argsort(errors)[:3]:
                    found = exact.quadratic_form(gram, target, best[index] * points[index])
                    # A stored singular matrix may be indefinite by rounding.
                    assert bound <= max(exact.float_above(found), 0.0)
        # What the search believes is what can be proven, but for rounding.
        if grown is not None and name not in ("proportional", "singular"):
            believed = envelope.value * (1 - 1e-6) - 1e-9 * target @ gram @ target
            assert scale_bound(gram, target, rays, grown) >= believed


def test_envelope_is_strong_where_nothing_couples(rng: np.random.Generator) -> None:
    """A diagonal Gram matrix leaves no gap."""
    codes = np.array(CODES["2 bits"])
    for _ in range(5):
        gram, target = np.diag(rng.random(3) + 0.1), rng.normal(size=3)
        points = np.array(list(itertools.product(codes, repeat=3)))
        smallest = float(exact_least(gram, target, points))
        envelope = Envelope(gram, target, [codes], 0.5, smallest)
        envelope.grow(lambda grown=envelope: grown.size > 60)
        assert 0.9 * smallest <= envelope.value <= smallest * (1 + 1e-9)


def test_shared_scale_of_several_rows(rng: np.random.Generator) -> None:
    codes = np.array(CODES["ternary"])
    for _ in range(4):
        x = rng.normal(size=(9, 3))
        gram, target = np.asarray(x.T @ x / 9), rng.normal(size=(2, 3))
        one = np.array(list(itertools.product(codes, repeat=3)))
        both = np.array([np.concatenate(pair) for pair in itertools.product(one, repeat=2)])
        block = np.kron(np.eye(2), gram)
        smallest = exact_least(block, target.ravel(), both)
        envelope = Envelope(gram, target, [codes], 0.7, float(smallest))
        envelope.grow(lambda grown=envelope: grown.size > 20)
        dual = envelope.dual()
        assert dual is not None
        bound = scale_bound(gram, target, Rays([codes], np.zeros(3, dtype=np.int64)), dual)
        assert 0 < bound <= exact.float_below(smallest)


def test_several_lists_of_codes_have_trees_of_their_own(rng: np.random.Generator) -> None:
    boxes = [np.arange(4.0) - z for z in range(4)]
    for _ in range(3):
        x = rng.normal(size=(9, 3))
        gram, target = np.asarray(x.T @ x / 9), rng.normal(size=3) + 0.5
        points = np.concatenate([list(itertools.product(box, repeat=3)) for box in boxes])
        smallest = exact_least(gram, target, points)
        envelope = Envelope(gram, target, boxes, 0.7, float(smallest) + 1e-9)
        envelope.grow(lambda grown=envelope: grown.size > 60)
        dual = envelope.dual()
        assert dual is not None
        assert len(dual.root) == 4
        bound = scale_bound(gram, target, Rays(boxes, np.zeros(3, dtype=np.int64)), dual)
        assert bound <= exact.float_below(smallest)
        left = envelope.remaining(float(smallest))
        assert len(left) == 4
        # Wherever a ray has its best scale, it is not excluded below its error.
        for box, intervals in zip(boxes, left, strict=True):
            for q in itertools.product(box, repeat=3):
                a, b = np.array(q) @ gram @ np.array(q), np.array(q) @ gram @ target
                if b > 0 and target @ gram @ target - b * b / a < float(smallest) * (1 - 1e-9):
                    assert any(low <= b / a <= high for low, high in intervals)


def test_projection_is_below_the_exact_one(rng: np.random.Generator) -> None:
    for _ in range(4):
        x = rng.normal(size=(8, 5)) * 10.0 ** rng.integers(-3, 3, size=5)
        gram = np.asarray(x.T @ x / 8)
        group = np.array([0, 0, 1, 1, 1])
        found = project(gram, group, (0, 3))
        assert found is not None
        matrix, left = found
        assert left.tolist() == [1, 2, 4]
        h = [[Fraction(v) for v in row] for row in gram.tolist()]
        for g in (0, 1):
            a = [sum(row[j] for j in range(5) if group[j] == g) for row in h]
            tau = sum(a[j] for j in range(5) if group[j] == g)
            h = [[h[i][j] - a[i] * a[j] / tau for j in range(5)] for i in range(5)]
        gap = np.array(
            [[float(h[i][j] - Fraction(matrix[p, q])) for q, j in enumerate(left)] for p, i in enumerate(left)]
        )
        off = np.abs(gap).sum(axis=1) - np.abs(np.diag(gap))
        # Diagonally dominant, and not by more than rounding.
        assert np.all(np.diag(gap) >= off)
        assert np.all(np.diag(gap) <= 1e-13 * np.diag(gram).max())


@pytest.mark.parametrize("groups", [1, 2])
def test_real_zero_points(groups: int, rng: np.random.Generator) -> None:
    codes = np.arange(3.0)
    for _ in range(3):
        x = rng.normal(size=(9, 4))
        gram, target = np.asarray(x.T @ x / 9), rng.normal(size=4)
        group = np.arange(4) * groups // 4
        dropped = tuple(int(np.flatnonzero(group == g)[0]) for g in range(groups))
        boxes = [codes - c for c in codes]
        found = project(gram, group, dropped)
        assert found is not None
        matrix, left = found
        moved = target[left] - target[np.array(dropped)[group[left]]]
        if groups == 1:
            envelope = Envelope(matrix, moved, boxes, 0.7, 1.0, dropped=dropped)
            envelope.grow(lambda grown=envelope: grown.size > 30)
            dual = envelope.dual()
        else:
            d = maximize_minorant(matrix, np.ones(len(left)))
            minorant = ScaleMinorant(d, np.zeros((len(left), 0)), np.zeros(0))
            whole = np.array([-1]), np.zeros(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
            dual = ScaleDual((minorant,), (ScalePoint(moved[None], 0, np.zeros((1, 0))),), *whole, dropped)
        assert dual is not None
        assert dual.is_valid(4)
        bound = scale_bound(gram, target, Rays(boxes, group), dual)
        smallest = np.inf
        root = np.linalg.cholesky(gram).T
        for q in itertools.product(codes, repeat=4):
            columns = [np.where(group == g, np.array(q), 0.0) for g in range(groups)]
            columns += [sign * (group == g) for g in range(groups) for sign in (1.0, -1.0)]
            smallest = min(smallest, nnls(root @ np.array(columns).T, root @ target)[1] ** 2)
        assert bound <= smallest * (1 + 1e-9)
        assert groups > 1 or bound > 0


def test_groups_of_inputs_have_scales_of_their_own(rng: np.random.Generator) -> None:
    codes = np.array(CODES["2 bits"])
    for _ in range(4):
        x = rng.normal(size=(9, 4))
        gram, target = np.asarray(x.T @ x / 9), rng.normal(size=4)
        group = np.array([0, 1, 0, 1])
        root = np.linalg.cholesky(gram).T
        smallest = np.inf
        for q in itertools.product(codes, repeat=4):
            columns = np.array([np.where(group == g, np.array(q), 0.0) for g in range(2)]).T
            smallest = min(smallest, nnls(root @ columns, root @ target)[1] ** 2)
        d = maximize_minorant(gram, np.ones(4))
        minorant = ScaleMinorant(d, np.zeros((4, 0)), np.zeros(0))
        points = tuple(ScalePoint(z[None], 0, np.zeros((1, 0))) for z in (target, 0 * target, rng.normal(size=4)))
        axis, child = np.array([0, 1, -1, -1, -1]), np.array([1, 3, 2, 0, 1])
        dual = ScaleDual((minorant,), points, axis, np.array([0.5, 0.7, 0.0, 0.0, 0.0]), child, np.array([0]))
        assert dual.is_valid(4)
        assert scale_bound(gram, target, Rays([codes], group), dual) <= smallest * (1 + 1e-9)


def test_dual_points_of_another_shape_are_refused(rng: np.random.Generator) -> None:
    gram, target, codes = np.eye(3), rng.normal(size=3), np.array(CODES["2 bits"])
    minorant = ScaleMinorant(np.ones(3), np.zeros((3, 0)), np.zeros(0))
    point = ScalePoint(np.zeros((1, 3)), 0, np.zeros((1, 0)))
    whole = np.array([-1]), np.zeros(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    assert ScaleDual((minorant,), (point,), *whole).is_valid(3)
    assert not ScaleDual((minorant,), (), *whole).is_valid(3)
    assert not ScaleDual((ScaleMinorant(-np.ones(3), np.zeros((3, 0)), np.zeros(0)),), (point,), *whole).is_valid(3)
    assert not ScaleDual((minorant,), (ScalePoint(np.zeros((1, 2)), 0, np.zeros((1, 0))),), *whole).is_valid(3)
    loop = np.array([0, -1, -1]), np.ones(3), np.array([0, 0, 0]), np.zeros(1, dtype=np.int64)
    assert not ScaleDual((minorant,), (point,), *loop).is_valid(3)
    crossing = ScaleMinorant(np.zeros(3), np.array([[1.0], [1.0], [0.0]]), np.ones(1))
    across = ScaleDual((crossing,), (ScalePoint(np.zeros((1, 3)), 0, np.zeros((1, 1))),), *whole)
    assert across.is_valid(3)
    with pytest.raises(CertificationError, match="do not fit"):
        scale_bound(gram, target, Rays([codes], np.array([0, 1, 1])), across)
    with pytest.raises(CertificationError, match="do not fit"):
        scale_bound(gram, target, Rays([codes * 0.5], np.zeros(3, dtype=np.int64)), across)
    # A minorant above the Gram matrix is shrunk to one that is not.
    tall = ScaleDual((ScaleMinorant(5 * np.ones(3), np.zeros((3, 0)), np.zeros(0)),), (point,), *whole)
    assert scale_bound(gram, target, Rays([codes], np.zeros(3, dtype=np.int64)), tall) <= target @ target


@pytest.mark.parametrize(("groups", "box"), [(2, "2 bits"), (3, "2 bits"), (2, "uneven"), (3, "binary")])
def test_envelope_of_several_groups(groups: int, box: str, rng: np.random.Generator) -> None:
    codes = np.array(CODES[box])
    for _ in range(2):
        x = rng.normal(size=(9, 4))
        gram, target = np.asarray(x.T @ x / 9), rng.normal(size=4)
        group = np.array([0, 1, 0, groups - 1])
        root = np.linalg.cholesky(gram).T
        smallest = np.inf
        for q in itertools.product(codes, repeat=4):
            columns = np.array([np.where(group == g, np.array(q), 0.0) for g in range(groups)]).T
            smallest = min(smallest, nnls(root @ columns, root @ target)[1] ** 2)
        envelope = GroupEnvelope(gram, target, [codes], group, np.ones(groups), smallest)
        first = envelope.value
        envelope.grow(lambda grown=envelope: grown.size > 40)
        assert first <= envelope.value <= smallest * (1 + 1e-9)
        dual = envelope.dual()
        assert dual is not None
        assert dual.is_valid(4)
        bound = scale_bound(gram, target, Rays([codes], group), dual)
        assert envelope.value * (1 - 1e-6) - 1e-9 <= bound <= smallest * (1 + 1e-9)
        assert bound > 0 or smallest < 1e-9


@pytest.mark.parametrize(("layer", "bits", "size"), [("linear", 3, 48), ("layer1.0.conv1", 2, 40)])
@pytest.mark.slow
def test_no_rounding_on_a_real_layer_is_below_the_bound(
    layer: str, bits: int, size: int, reference_data: Path, rng: np.random.Generator
) -> None:
    stored = lb.load_layers(reference_data / "resnet20_layers.safetensors")[layer]
    live = np.flatnonzero(np.diag(stored.gram[0]) > 0)[:size]
    gram = np.ascontiguousarray(stored.gram[0][np.ix_(live, live)])
    target = stored.matrix[0][live]
    codes = np.arange(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1))
    largest = float(np.abs(target).max() / codes[-1])
    best, best_scale = float(target @ gram @ target), largest
    for share in np.linspace(0.3, 1.2, 40):
        scale = share * largest
        q = codes[np.argmin(np.abs(target[:, None] / scale - codes), axis=1)]
        pull, energy = q @ gram @ target, q @ gram @ q
        if pull > 0:
            v = q * (pull / energy)
            error = exact.float_above(exact.quadratic_form(gram, target, v))
            if error < best:
                best, best_scale = error, pull / energy
    envelope = Envelope(gram, target, [codes], best_scale, best)
    envelope.grow(lambda: envelope.size > 25)
    dual = envelope.dual()
    assert dual is not None
    bound = scale_bound(gram, target, Rays([codes], np.zeros(size, dtype=np.int64)), dual)
    assert 0.02 * best < bound <= best
    assert bound == pytest.approx(envelope.value, rel=1e-6)
    # Forms were used, and the same dual point serves the allowed set of the problem.
    assert dual.minorants[0].weights.size
    allowed = ScaledLevels(codes, "none", False, False, np.zeros(size, dtype=np.int64))
    assert least(gram, target, allowed, dual) == bound
    powers = ScaledLevels(codes, "none", False, True, np.zeros(size, dtype=np.int64))
    assert least(gram, target, powers, dual) >= bound


def test_powers_of_two_alone(rng: np.random.Generator) -> None:
    codes = np.array(CODES["ternary"])
    for _ in range(20):
        n = int(rng.integers(1, 5))
        profile = Profile(rng.random(n), rng.normal(size=n), padded(codes, n))
        for low, high in ((0.0, np.inf), (0.3, 1.9), (1.0, 1.0), (1.1, 1.2), (0.0, 0.5), (2.0, np.inf)):
            powers = 2.0 ** np.arange(-40, 41)
            inside = powers[(powers >= low) & (powers <= high)]
            values = [profile.minimum(s, s)[0] for s in inside]
            found = profile.least_power(low, high)
            assert found <= min(values, default=np.inf) + 1e-12
            assert found >= profile.minimum(low, high)[0]
