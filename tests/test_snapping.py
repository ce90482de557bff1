"""Weights of coarse types at the levels that they were rounded from."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.problems.float_types import rounded, rounds_from
from layerbounds.problems.snapping import half_units, moved_to_levels


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    return lb.Layer.from_activations(rng.normal(size=(2, 8)), rng.normal(size=(40, 8)))


def chosen(grid: lb.Grid, rng: np.random.Generator) -> Float:
    """Random points of a grid."""
    rows = [grid.levels(c) for c in range(grid.out_features)]
    return np.stack([row[np.arange(len(row)), rng.integers(0, row.shape[1], len(row))] for row in rows])


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_half_units_are_what_one_rounding_does(dtype: str, rng: np.random.Generator) -> None:
    """Normal and subnormal numbers, powers of two, zero: the ends of what rounds to them, both included."""
    some = np.concatenate(
        [[0.0, 1.0, 0.5, -2.0, 2.0**-24, -(2.0**-14), 3 * 2.0**-24], rng.normal(size=20), [1e-5, 6e-8]]
    )
    for value in rounded(some, dtype).tolist():
        interval = rounds_from(value, dtype)
        for outward, end in ((True, interval.high), (False, interval.low)):
            if value < 0.0:
                end = interval.low if outward else interval.high
            if value == 0.0 and (not outward or dtype == "float64"):
                continue
            half = Fraction(float(half_units(np.array(value), np.array(outward), dtype)))
            slack = half * Fraction(1, 2**12) if dtype in ("bfloat16", "float16") else Fraction(0)
            assert abs(end - Fraction(value)) <= half <= abs(end - Fraction(value)) + slack


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["symmetric", "zero points", "minima", "codebook"])
def test_rounded_levels_are_moved_back(layer: lb.Layer, dtype: str, kind: str, rng: np.random.Generator) -> None:
    scale = rounded(rng.uniform(0.05, 0.3, (2, 2)), "float16")
    scale[1, 1] = 0.0
    how = {
        "symmetric": {"bits": 4},
        "zero points": {"bits": 4, "zero_point": np.array([[3, 8], [7, 0]])},
        "minima": {"bits": 4, "offset": rounded(rng.uniform(-1, 0, (2, 2)), "float16")},
        "codebook": {"codebook": "nf4"},
    }[kind]
    problem = lb.quantization_problem(layer, scale=scale, **how)  # type: ignore[arg-type]
    exact = chosen(problem.grid, rng)
    coarse = rounded(exact, dtype)
    told = lb.evaluate(problem, coarse, dtype=dtype, snap=True)
    assert told.feasible.all() and not told.off_grid.any()
    np.testing.assert_array_equal(told.error, lb.evaluate(problem, exact).error)
    np.testing.assert_array_equal(told.moved, np.count_nonzero(coarse != exact, axis=1))
    np.testing.assert_array_equal(told.moved_by, np.abs(coarse - exact).max(axis=1))
    plain = lb.evaluate(problem, coarse, dtype=dtype)
    assert not plain.moved.any() and plain.off_grid.tolist() == told.moved.tolist()
    through_single = rounded(rounded(exact, "float32"), dtype)
    assert lb.evaluate(problem, through_single, dtype=dtype, snap=True).feasible.all()


def test_arrays_say_their_type_and_others_are_off_the_grid(layer: lb.Layer, rng: np.random.Generator) -> None:
    problem = lb.quantization_problem(layer, 4, scale=np.array([0.1, 0.07]))
    exact = chosen(problem.grid, rng)
    assert lb.evaluate(problem, exact.astype(np.float16), snap=True).feasible.all()
    # In float64 nothing is near but the level itself.
    as_double = exact.astype(np.float16).astype(np.float64)
    assert lb.evaluate(problem, as_double, snap=True).moved.sum() == 0
    far = exact.astype(np.float16)
    far[0, 3] = np.nextafter(np.nextafter(far[0, 3], np.float16(9)), np.float16(9))
    told = lb.evaluate(problem, far, snap=True)
    assert told.off_grid.tolist() == [1, 0] and told.feasible.tolist() == [False, True]
    assert "off the grid" in told.describe() and "moved to level" in told.describe()
    with pytest.raises(InputError, match="snap is 1"):
        lb.evaluate(problem, far, snap=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no float16"):
        lb.evaluate(problem, exact, dtype="float16", snap=True)


def test_ends_of_the_interval() -> None:
    """Below a power of two numbers are twice as close; ties count on both sides."""
    levels = np.array([[1.0 - 2.0**-12, 3.0]])
    assert moved_to_levels(np.array([1.0]), levels, "float16")[0] == levels[0, 0]
    far = np.array([[1.0 - 2.0**-12 - 2.0**-20, 3.0]])
    assert moved_to_levels(np.array([1.0]), far, "float16")[0] == 1.0
    above = np.array([[1.0 + 2.0**-11, 3.0]])
    assert moved_to_levels(np.array([1.0]), above, "float16")[0] == above[0, 0]
    tiny = np.array([[2.0**-25, 1.0]])
    assert moved_to_levels(np.array([0.0]), tiny, "float16")[0] == 2.0**-25
    assert moved_to_levels(np.array([0.0]), tiny, "bfloat16")[0] == 0.0


def test_joint_and_free_scales(layer: lb.Layer, rng: np.random.Generator) -> None:
    scale = np.array([0.1, 0.07])
    joint = lb.joint_problem(layer, 4, scale=scale, offset=0.3 * scale, k=5)
    exact = chosen(joint.grid, rng)
    exact[:, :3] = 0.0
    told = lb.evaluate(joint, exact.astype(np.float16), snap=True)
    assert told.feasible.all() and told.moved.any()
    np.testing.assert_array_equal(told.error, lb.evaluate(joint, exact).error)
    free = lb.quantization_problem(layer, 4, scale="free")
    coarse = (scale[:, None] * rng.integers(-8, 8, (2, 8))).astype(np.float16)
    told = lb.evaluate(free, coarse, snap=True)
    assert told.feasible.all() and told.moved.any()
    np.testing.assert_allclose(told.error, lb.evaluate(free, coarse).snapped_error, rtol=1e-12)
    pruned = lb.pruning_problem(layer, k=5)
    assert not lb.evaluate(pruned, coarse, snap=True).moved.any()


def test_bfloat16_tensors(layer: lb.Layer, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="bfloat16 arrays are torch's")
    problem = lb.quantization_problem(layer, 4, scale=torch.tensor([0.1, 0.07], dtype=torch.bfloat16))
    exact = chosen(problem.grid, rng)
    assert lb.evaluate(problem, torch.tensor(exact).to(torch.bfloat16), snap=True).feasible.all()
    assert not lb.evaluate(problem, torch.tensor(exact).to(torch.bfloat16)).feasible.all()
