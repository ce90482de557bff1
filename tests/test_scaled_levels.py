"""The allowed set of free scales: what rounding explains, decided exactly and compared with trying everything."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from layerbounds.arrays import Float
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.float_types import FLOAT_TYPES, rounded, rounds_from
from layerbounds.problems.scale_nearest import snapped_zero
from layerbounds.problems.scaled import ScaledLevels

TYPES = ["float64", "float32", "bfloat16", "float16"]
KINDS = ["none", "integer", "real", "signed", "powers of two", "codebook"]
NF4_LIKE = np.array([-1.0, -0.6961928009986877, -0.18477343022833, 0.0, 0.33791524171829224, 1.0])


def make(kind: str, bits: int, n: int, dtype: str = "float64", group: object = None, rows: int = 1) -> ScaledLevels:
    """A set of one scale group, or of given ones."""
    codes = np.arange(2.0**bits) - (0.0 if kind in ("integer", "real") else 2.0 ** (bits - 1))
    if kind == "codebook":
        codes = NF4_LIKE
    zero = kind if kind in ("integer", "real") else "none"
    groups = np.zeros(n, dtype=np.int64) if group is None else np.asarray(group)
    return ScaledLevels(codes, zero, kind == "signed", kind == "powers of two", groups, rows=rows, dtype=dtype)


def drawn(rng: np.random.Generator, allowed: ScaledLevels, scale: float) -> Float:
    """Weights of random codes and a random zero point at a scale near one, rounded once."""
    n, levels = len(allowed.group), len(allowed.codes)
    s = scale * rng.uniform(0.5, 2.0)
    if allowed.powers_of_two:
        s = 2.0 ** np.round(np.log2(s))
    if allowed.signed:
        s *= rng.choice([-1.0, 1.0])
    zero = {"none": 0.0, "integer": float(rng.integers(levels)), "real": rng.normal() * levels}[allowed.zero]
    codes = rng.choice(allowed.codes, size=n)
    exact = [Fraction(s) * (Fraction(q) - Fraction(zero)) for q in codes.tolist()]
    return np.array([nearest_in(value, allowed.dtype) for value in exact])


def nearest_in(value: Fraction, dtype: str) -> float:
    """One rounding of an exact number: to nearest, ties to even."""
    digits, smallest = FLOAT_TYPES[dtype]
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** max(exponent + 1 - digits, smallest)
    # round() of a Fraction takes ties to even.
    return float(round(value / unit) * unit)


def origins(value: float, dtype: str) -> tuple[Fraction, bool, Fraction, bool]:
    """The reals that round to a number, from its neighbours: an end belongs to them if it rounds to the number."""
    unit = Fraction(2) ** FLOAT_TYPES[dtype].smallest
    step = max(abs(Fraction(value)) * Fraction(2) ** -60, unit / 4)
    ends = []
    for sign in (-1, 1):
        width = step
        while nearest_in(Fraction(value) + sign * width, dtype) == value:
            width *= 2
        inside, outside = Fraction(value), Fraction(value) + sign * width
        neighbour = Fraction(nearest_in(outside, dtype))
        while (closer := Fraction(nearest_in((inside + neighbour) / 2, dtype))) not in (inside, neighbour):
            neighbour = closer
        ends.append((inside + neighbour) / 2)
    return ends[0], nearest_in(ends[0], dtype) == value, ends[1], nearest_in(ends[1], dtype) == value


def within(value: Fraction, bound: tuple[Fraction, bool, Fraction, bool]) -> bool:
    low, low_closed, high, high_closed = bound
    return (low < value or (low == value and low_closed)) and (value < high or (value == high and high_closed))


def has_common(bounds: list[tuple[Fraction, bool, Fraction, bool]], powers_of_two: bool = False) -> bool:
    """Whether intervals have a common positive point, or power of two."""
    low, low_open = max([(a, not closed) for a, closed, _, _ in bounds] + [(Fraction(0), True)])
    high, high_closed = min((b, closed) for _, _, b, closed in bounds)
    if low > high:
        return False
    if powers_of_two:
        powers = [Fraction(2) ** e for e in range(-4, 5)]
        return any(within(p, (low, not low_open, high, high_closed)) for p in powers)
    return low < high or (not low_open and high_closed)


def over(bound: tuple[Fraction, bool, Fraction, bool], code: Fraction) -> tuple[Fraction, bool, Fraction, bool]:
    a, a_closed, b, b_closed = bound
    return (a / code, a_closed, b / code, b_closed) if code > 0 else (b / code, b_closed, a / code, a_closed)


def explained(weights: Float, allowed: ScaledLevels) -> bool:
    """Trying every choice of codes in rational arithmetic."""
    bounds = [origins(v, allowed.dtype) for v in weights.tolist()]
    if not np.any(weights):
        return allowed.zero != "none" or bool(np.any(allowed.codes == 0))
    if allowed.zero == "real":
        for codes in itertools.product(allowed.codes.tolist(), repeat=len(weights)):
            pairs = []
            for (a, a_in, b, b_in), q in zip(bounds, codes, strict=True):
                for (c, c_in, d, d_in), p in zip(bounds, codes, strict=True):
                    difference = (a - d, a_in and d_in, b - c, b_in and c_in)
                    if q > p:
                        pairs.append(over(difference, Fraction(q - p)))
                    elif q == p and not within(Fraction(0), difference):
                        pairs.append((Fraction(1), True, Fraction(-1), True))
            if not pairs or has_common(pairs):
                return True
        return False
    for box in allowed.boxes():
        for codes in itertools.product(box.tolist(), repeat=len(weights)):
            if any(q == 0 and v != 0 for q, v in zip(codes, weights.tolist(), strict=True)):
                continue
            parts = [over(bound, Fraction(q)) for bound, q in zip(bounds, codes, strict=True) if q != 0]
            if parts and has_common(parts, allowed.powers_of_two):
                return True
    return False


@pytest.mark.parametrize("dtype", TYPES)
def test_the_reals_that_round_to_a_number(dtype: str, rng: np.random.Generator) -> None:
    values = [0.0, 1.0, -1.0, 2.0**-10, 1.5, float(rounded(np.array([np.pi]), dtype)[0])]
    smallest = 2.0 ** FLOAT_TYPES[dtype].smallest
    values += [smallest, 3 * smallest, smallest * 2.0 ** (FLOAT_TYPES[dtype].digits - 1)]
    for value in values:
        assert tuple(rounds_from(value, dtype)) == origins(value, dtype), value
    plain = rng.normal(size=200) * 10.0 ** rng.uniform(-6, 3, size=200)
    plain = np.concatenate((plain, smallest * rng.integers(0, 40, size=50) / 8, 1 + np.arange(64) / 1024))
    assert rounded(plain, dtype).tolist() == [nearest_in(Fraction(v), dtype) for v in plain.tolist()]
    if dtype in ("float32", "float16"):
        np.testing.assert_array_equal(rounded(plain, dtype), plain.astype(dtype).astype(np.float64))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_multiples_are_allowed(kind: str, dtype: str, rng: np.random.Generator) -> None:
    tiny = 2.0 ** (FLOAT_TYPES[dtype].smallest + 2)
    for bits, scale in itertools.product((1, 2, 3, 4, 8), (1.0, tiny, 100.0, 1e-3)):
        if bits > 4 and ((dtype == "float64" and scale == tiny) or (dtype == "bfloat16" and kind == "real")):
            continue  # far more choices of codes than are tried
        for n in (1, 3, 30):
            allowed = make(kind, bits, n, dtype)
            weights = drawn(rng, allowed, scale)
            if not np.any(weights) and not (allowed.zero != "none" or 0.0 in allowed.codes):
                continue
            assert allowed.violation(weights) == 0.0, (bits, scale, n, weights)
            fit = allowed.fit(weights)
            assert fit is not None
            # Real zero points, and scales between the smallest numbers of all, may be no float64 numbers.
            if allowed.zero != "real" and not (dtype == "float64" and scale == tiny):
                np.testing.assert_array_equal(allowed.weights(fit), weights)
            assert np.isin(fit.codes, allowed.codes).all()
            assert allowed.exact(weights) is weights and allowed.nearest(weights) is weights
            if not allowed.signed:
                assert np.all(fit.scale > 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_allowed_exactly_where_some_codes_explain_it(kind: str, dtype: str, rng: np.random.Generator) -> None:
    seen = set()
    for trial in range(24):
        n, bits = int(rng.integers(2, 5)), int(rng.integers(1, 3))
        if kind == "real":
            n = min(n, 3)
        allowed = make(kind, bits, n, dtype)
        weights = drawn(rng, allowed, 1.0)
        if trial % 4:
            # A few units in the last place beyond.
            index = int(rng.integers(n))
            digits = FLOAT_TYPES[dtype].digits
            unit = 2.0 ** (np.floor(np.log2(abs(weights[index]) or 1.0)) + 1 - digits)
            weights[index] = rounded(weights[index] + rng.integers(-3, 4) * unit, dtype)
        found = allowed.fit(weights) is not None
        assert found == explained(weights, allowed), (weights.tolist(), bits)
        assert (allowed.violation(weights) == 0.0) == found
        seen.add(found)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", ["none", "integer", "real", "signed"])
def test_the_violation_is_the_smallest_over_all_scales(kind: str, rng: np.random.Generator) -> None:
    for bits, n in ((1, 3), (2, 4), (3, 6)):
        allowed = make(kind, bits, n)
        weights = rng.normal(size=n)
        violation = allowed.violation(weights)
        scales = np.geomspace(0.02, 8.0, 500) * np.abs(weights).max()
        offsets = np.linspace(-2, 2, 161) + weights.min() if kind == "real" else np.zeros(1)
        boxes = [allowed.codes] if kind == "real" else allowed.boxes()
        tried = min(
            float(np.abs((weights - o)[None, :, None] - scales[:, None, None] * box).min(2).max(1).min())
            for o in offsets
            for box in boxes
        )
        assert violation <= tried * (1 + 1e-9)
        fit, _ = allowed.closest(weights)
        reached = np.max(np.abs(weights - fit.scale[0] * (fit.codes - fit.zero_point[0])))
        assert reached == pytest.approx(violation, rel=1e-9)
        # No scale of a fine grid is much better than its neighbours allow.
        assert kind == "real" or violation >= tried - 0.02 * np.abs(weights).max()


def test_scale_groups_and_rows_that_share_a_scale(rng: np.random.Generator) -> None:
    group = [0, 1, 0, 2, 1, 1, 0, 2]
    allowed = make("none", 3, 8, group=group)
    scales = np.array([0.3, 2e-7, 5e4])
    codes = np.array([3, -4, 1, 2, 1, -1, -3, 3.0])
    weights = scales[group] * codes
    fit = allowed.fit(weights)
    assert fit is not None
    np.testing.assert_allclose(fit.scale, scales, rtol=1e-15)
    np.testing.assert_array_equal(allowed.weights(fit), weights)
    weights[1] *= 1 + 1e-12
    assert allowed.violation(weights) == pytest.approx(0.5 * abs(weights[1]) * 1e-12, rel=0.5)
    np.testing.assert_allclose(allowed.exact(weights), scales[group] * codes, rtol=1e-11)

    part = allowed.restrict(np.array([True, False, True, True, False, False, True, False]))
    assert part.groups == 2 and part.group.tolist() == [0, 0, 1, 0]

    shared = make("integer", 2, 3, rows=2)
    weights = 0.7 * (np.array([[0, 1, 2], [3, 1, 0.0]]) - 1)
    found = shared.fit(weights)
    assert found is not None and found.zero_point.tolist() == [1.0] and found.codes.shape == (2, 3)
    weights[1] *= 1.1
    assert shared.violation(weights) > 1e-3
    assert shared.violation(shared.nearest(weights)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_near_points_are_allowed_and_near(kind: str, rng: np.random.Generator) -> None:
    for bits, n in ((1, 1), (2, 6), (3, 30), (8, 12)):
        allowed = make(kind, bits, n)
        for point in (rng.normal(size=n), -np.abs(rng.normal(size=n)), np.zeros(n)):
            near = allowed.nearest(point)
            assert allowed.violation(near) == 0.0
            assert np.sum((near - point) ** 2) <= np.sum(point**2) * (1 + 1e-9) + 1e-60
        hidden = drawn(rng, allowed, 1.0)
        if np.any(hidden):
            noisy = hidden * (1 + 1e-11 * rng.normal(size=n))
            meant = allowed.exact(noisy)
            assert allowed.violation(meant) == 0.0
            np.testing.assert_allclose(meant, hidden, atol=1e-9 * np.abs(hidden).max())
    with pytest.raises(NotAllowedError, match="no scale"):
        make(kind, 2, 30).exact(rng.normal(size=30))


def test_zero_needs_the_level_zero() -> None:
    assert make("none", 2, 3).violation(np.zeros(3)) == 0.0
    binary = ScaledLevels(np.array([-1.0, 1.0]), "none", False, False, np.zeros(3, dtype=np.int64))
    assert binary.violation(np.zeros(3)) > 0.0
    assert binary.violation(np.array([0.5, -0.5, 0.5])) == 0.0
    assert 0.0 < np.abs(binary.nearest(np.zeros(3))).max() < 1e-90
    assert make("real", 1, 2).violation(np.zeros(2)) == 0.0


def test_no_weights_above_the_limit(rng: np.random.Generator) -> None:
    for kind in KINDS:
        codes = make(kind, 3, 5)
        allowed = ScaledLevels(codes.codes, codes.zero, codes.signed, codes.powers_of_two, codes.group, limit=1.5)
        near = allowed.nearest(100.0 * rng.normal(size=5))
        assert np.abs(near).max() <= 1.5 and allowed.violation(near) == 0.0
    weights = np.array([3.0, -3.0, 0.0, 1.0, 1.0])
    assert allowed.violation(weights) >= 1.5
    with pytest.raises(NotAllowedError, match="singular"):
        allowed.exact(weights)


def test_inputs_without_energy_take_levels_of_the_others(rng: np.random.Generator) -> None:
    for kind, bits in itertools.product(KINDS, (1, 2, 3)):
        allowed = make(kind, bits, 12, group=[0] * 6 + [1] * 6)
        live = rng.random(12) < 0.6
        live[6:] = rng.random() < 0.5
        original = rng.normal(size=12)
        known = drawn(rng, make(kind, bits, int(live[:6].sum()) or 1), 0.4)
        weights = np.concatenate((known[: live[:6].sum()], np.zeros(live[6:].sum())))
        full = allowed.completed(weights, live, original)
        np.testing.assert_array_equal(full[live], weights)
        if 0.0 in allowed.codes or not live[6:].any():
            assert allowed.violation(full) == 0.0, (kind, bits, full)


def test_pieces_are_the_allowed_weights(rng: np.random.Generator) -> None:
    for kind in KINDS:
        allowed = make(kind, 1, 2, group=[0, 1])
        for offset, directions, nonnegative in itertools.islice(allowed.pieces(), 5):
            x = rng.uniform(0.1, 1.0, size=directions.shape[1])
            assert nonnegative or not len(x)
            assert allowed.violation(allowed.exact(offset + directions @ x)) == 0.0
    assert len(list(make("integer", 2, 2).pieces())) == 4 * 4**2
    assert len(list(make("signed", 2, 2).pieces())) == 2 * 4**2


def test_snapped_zero_points_have_exact_differences(rng: np.random.Generator) -> None:
    for zero in [*(rng.normal(size=50) * 10.0 ** rng.uniform(-3, 8, size=50)), 0.0, 255.0]:
        near = snapped_zero(float(zero), 256)
        assert abs(near - zero) <= 2.0**-43 * max(abs(zero), 1.0)
        assert all(Fraction(q - near) == Fraction(q) - Fraction(near) for q in range(256))
