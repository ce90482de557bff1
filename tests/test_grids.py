"""Grids: level sets, scale rules and granularities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.stats import norm

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError, UnknownNameError
from layerbounds.problems.codebooks import codebook
from layerbounds.problems.fitting import codebook_grid, uniform_grid
from layerbounds.problems.grids import Granularity, given_grid
from layerbounds.problems.levels import nearest_levels
from layerbounds.problems.quantization import quantization_problem
from layerbounds.problems.ranges.mse import MSE_STEPS

CODEBOOKS = ["binary", "ternary", "nf4", "fp4", "mxfp4"]


@pytest.fixture
def weight(rng: np.random.Generator) -> Float:
    """Four channels of fourteen weights with different spreads, one of them one-sided."""
    matrix = rng.normal(size=(4, 14)) * np.array([[1.0], [1e-3], [50.0], [1.0]])
    matrix[3] = np.abs(matrix[3])
    return matrix


def distance(codes: Float, scale: float, values: Float, zero: float = 0.0) -> float:
    """Squared distance of values to the nearest level, by trying all levels."""
    levels = scale * (codes - zero)
    return float(np.sum(np.min((values[:, None] - levels[None, :]) ** 2, axis=1)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_levels(weight: Float, bits: int) -> None:
    grid = uniform_grid(weight, bits)
    half = 2 ** (bits - 1)
    np.testing.assert_array_equal(grid.codes, np.arange(-half, half))
    assert grid.uniform
    assert grid.scale.shape == grid.zero_point.shape == (4, 1)
    assert grid.levels(2).shape == (14, 2 * half)
    np.testing.assert_array_equal(grid.levels(2)[0], grid.scale[2, 0] * np.arange(-half, half))
    assert not grid.zero_point.any()
    assert str(bits) in grid.label


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scales_are_those_of_the_reference_layers(reference_data: Path, bits: int) -> None:
    stored = load_file(reference_data / "resnet20_layers.safetensors")
    for name, layer in lb.load_layers(reference_data / "resnet20_layers.safetensors").items():
        scale = stored[f"{name}.scale_{bits}bit"]
        np.testing.assert_allclose(uniform_grid(layer.weight, bits).scale[:, 0], scale, rtol=1e-15, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_mse_scale_is_the_best_of_the_81(weight: Float, bits: int) -> None:
    grid = uniform_grid(weight, bits)
    assert len(MSE_STEPS) == 81
    assert (MSE_STEPS[0], MSE_STEPS[-1]) == (0.3, 1.1)
    for row, scale in zip(weight, grid.scale[:, 0], strict=True):
        tried = MSE_STEPS * (np.max(np.abs(row)) / (2 ** (bits - 1) - 0.5))
        errors = [distance(grid.codes, s, row) for s in tried]
        assert scale == tried[int(np.argmin(errors))]


@pytest.mark.parametrize("bits", [2, 4])
def test_asymmetric_mse_scale_is_the_best_for_its_zero_point(weight: Float, bits: int) -> None:
    grid = uniform_grid(weight, bits, symmetric=False)
    for row, scale, zero in zip(weight, grid.scale[:, 0], grid.zero_point[:, 0], strict=True):
        base = (max(row.max(), 0) - min(row.min(), 0)) / (2**bits - 1)
        errors = [distance(grid.codes, s, row, zero) for s in MSE_STEPS * base]
        assert scale == pytest.approx(MSE_STEPS[int(np.argmin(errors))] * base, rel=1e-15)


@pytest.mark.parametrize("name", ["ternary", "nf4", "fp4"])
def test_codebook_mse_scale_is_the_best_of_the_81(weight: Float, name: str) -> None:
    grid = codebook_grid(weight, name)
    for row, scale in zip(weight, grid.scale[:, 0], strict=True):
        tried = MSE_STEPS * np.max(np.abs(row)) / np.max(np.abs(grid.codes))
        errors = np.array([distance(grid.codes, s, row) for s in tried])
        assert distance(grid.codes, scale, row) == pytest.approx(errors.min(), rel=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_minmax_clips_nothing_and_is_tight(weight: Float, bits: int, symmetric: bool) -> None:
    grid = uniform_grid(weight, bits, symmetric, range="minmax")
    step = grid.scale
    assert np.all(np.abs(weight - grid.nearest(weight)) <= 0.5 * step * (1 + 1e-12))
    if symmetric:
        # One end level is a weight.
        ends = np.stack([weight.max(axis=1) / (2 ** (bits - 1) - 1), -weight.min(axis=1) / 2 ** (bits - 1)])
        np.testing.assert_array_equal(step[:, 0], ends.max(axis=0))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("fit", ["mse", "minmax"])
def test_asymmetric_grids_contain_zero(weight: Float, bits: int, fit: str) -> None:
    shifted = weight + np.array([[0.0], [1.0], [-200.0], [0.0]])  # channels of one sign too
    grid = uniform_grid(shifted, bits, symmetric=False, range=fit)  # type: ignore[arg-type]
    np.testing.assert_array_equal(grid.codes, np.arange(2**bits))
    np.testing.assert_array_equal(grid.zero_point, np.rint(grid.zero_point))
    for channel in range(4):
        assert np.all(np.any(grid.levels(channel) == 0.0, axis=1))


def test_one_bit_is_the_binary_codebook(weight: Float) -> None:
    grid = uniform_grid(weight, 1)
    np.testing.assert_array_equal(grid.codes, [-1.0, 1.0])
    np.testing.assert_array_equal(grid.scale[:, 0], np.abs(weight).mean(axis=1))
    assert not grid.uniform
    # The mean of |w| is the minimiser of the weight error, not one of 81 candidates.
    for row, scale in zip(weight, grid.scale[:, 0], strict=True):
        best = distance(grid.codes, scale, row)
        assert all(best <= distance(grid.codes, factor * scale, row) for factor in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("fit", ["mse", "minmax"])
def test_a_channel_of_zeros_has_scale_one(weight: Float, bits: int, symmetric: bool, fit: str) -> None:
    weight[1] = 0.0
    grid = uniform_grid(weight, bits, symmetric, range=fit)  # type: ignore[arg-type]
    assert grid.scale[1, 0] == 1.0
    assert np.all(np.isfinite(grid.scale))
    assert np.all(grid.scale > 0)


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("fit", ["mse", "minmax"])
def test_a_channel_of_zeros_has_scale_one_with_codebooks(weight: Float, name: str, fit: str) -> None:
    weight[1] = 0.0
    assert np.all(codebook_grid(weight, name, range=fit).scale[1] == 1.0)  # type: ignore[arg-type]


def test_subnormal_weights_do_not_divide_by_zero() -> None:
    tiny = np.full((1, 3), 5e-324)
    for symmetric in (True, False):
        assert np.all(np.isfinite(uniform_grid(tiny, 4, symmetric).levels(0)))


def test_tensor_granularity_shares_one_scale(weight: Float) -> None:
    grid = uniform_grid(weight, 3, granularity="tensor")
    assert grid.scale.shape == (4, 1)
    assert len(np.unique(grid.scale)) == 1
    assert grid.scale[0, 0] == uniform_grid(weight.reshape(1, -1), 3).scale[0, 0]


def test_groups_of_inputs_have_scales_of_their_own_and_the_last_may_be_smaller(weight: Float) -> None:
    grid = uniform_grid(weight, 3, granularity=4)
    assert grid.scale.shape == (4, 4)
    assert grid.group_size == 4
    for group in range(4):
        inputs = slice(4 * group, 4 * group + 4)
        alone = uniform_grid(weight[:, inputs], 3)
        np.testing.assert_array_equal(grid.scale[:, group], alone.scale[:, 0])
        for channel in range(4):
            np.testing.assert_array_equal(grid.levels(channel)[inputs], alone.levels(channel))


def test_group_larger_than_the_inputs_is_the_channel(weight: Float) -> None:
    np.testing.assert_array_equal(uniform_grid(weight, 3, granularity=128).scale, uniform_grid(weight, 3).scale)


def test_convolution_weights_are_grouped_along_the_flattened_inputs(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(2, 3, 2, 2))
    grid = uniform_grid(weight, 3, granularity=5)
    np.testing.assert_array_equal(grid.scale, uniform_grid(weight.reshape(2, 12), 3, granularity=5).scale)
    assert grid.scale.shape == (2, 3)


def test_torch_tensors_are_taken(weight: Float) -> None:
    torch = pytest.importorskip("torch", reason="the test is about PyTorch tensors")
    grid = uniform_grid(torch.tensor(weight, requires_grad=True), 3)
    np.testing.assert_array_equal(grid.scale, uniform_grid(weight, 3).scale)


def test_nearest_level_by_brute_force(weight: Float, rng: np.random.Generator) -> None:
    grid = codebook_grid(weight, "nf4", granularity=5)
    values = 3 * rng.normal(size=weight.shape) * weight.std(axis=1, keepdims=True)
    rounded = grid.nearest(values)
    for channel in range(4):
        levels = grid.levels(channel)
        for i in range(14):
            assert rounded[channel, i] in levels[i]
            assert abs(rounded[channel, i] - values[channel, i]) == np.min(np.abs(levels[i] - values[channel, i]))
    np.testing.assert_array_equal(grid.nearest(values[[2, 0]], [2, 0]), rounded[[2, 0]])
    np.testing.assert_array_equal(nearest_levels(np.array([[0.0, 1.0]]), np.array([0.5])), [0.0])


def test_codebooks_are_the_published_ones() -> None:
    nf4 = codebook("nf4")
    assert len(nf4) == 16
    assert (nf4[0], nf4[7], nf4[-1]) == (-1.0, 0.0, 1.0)
    # bitsandbytes builds them from quantiles of the normal distribution with this offset.
    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    quantiles = np.sort(np.concatenate([positive, [0.0], negative]))
    np.testing.assert_allclose(nf4, quantiles / quantiles.max(), atol=1e-6)
    magnitudes = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    for name in ("fp4", "mxfp4"):
        np.testing.assert_array_equal(codebook(name), [-m for m in reversed(magnitudes)] + [0.0, *magnitudes])
    np.testing.assert_array_equal(codebook("TERNARY"), [-1.0, 0.0, 1.0])
    assert all(np.all(np.diff(codebook(name)) > 0) for name in CODEBOOKS)
    assert not np.signbit(codebook("fp4")[7])  # one zero, and not the negative one


def test_only_consecutive_integers_are_uniform(weight: Float) -> None:
    uniform = {name: codebook_grid(weight, name).uniform for name in CODEBOOKS}
    assert uniform == {"binary": False, "ternary": True, "nf4": False, "fp4": False, "mxfp4": False}


@pytest.mark.parametrize("fit", ["mse", "minmax"])
def test_mxfp4_scales_are_powers_of_two_for_32_inputs(rng: np.random.Generator, fit: str) -> None:
    weight = rng.normal(size=(3, 70))
    grid = codebook_grid(weight, "mxfp4", range=fit)  # type: ignore[arg-type]
    assert grid.group_size == 32
    assert grid.scale.shape == (3, 3)
    np.testing.assert_array_equal(np.exp2(np.rint(np.log2(grid.scale))), grid.scale)
    top = np.stack([np.abs(weight[:, s : s + 32]).max(axis=1) for s in (0, 32, 64)], axis=1)
    if fit == "minmax":
        assert np.all(6 * grid.scale >= top)
        assert np.all(3 * grid.scale < top)
    else:
        # Never worse than the scale of the specification, 2^(floor(log2 max|w|) - 2).
        for channel in range(3):
            for group in range(3):
                block = weight[channel, 32 * group : 32 * group + 32]
                standard = 2.0 ** (np.floor(np.log2(top[channel, group])) - 2)
                assert distance(grid.codes, grid.scale[channel, group], block) <= distance(grid.codes, standard, block)


def test_own_codebook(weight: Float) -> None:
    grid = codebook_grid(weight, [3.0, -1.0, 0.0, 0.0], range="minmax")
    np.testing.assert_array_equal(grid.codes, [-1.0, 0.0, 3.0])
    np.testing.assert_array_equal(grid.scale[:, 0], np.abs(weight).max(axis=1) / 3.0)
    assert "3-level codebook" in grid.label
    assert np.all(codebook_grid(weight, [0.0]).levels(0) == 0.0)


def test_explicit_symmetric_scales(weight: Float) -> None:
    grid = given_grid([0.1, 0.2, 0.3, 0.4], 3, 14)
    np.testing.assert_array_equal(grid.levels(1)[5], 0.2 * np.arange(-4, 4))
    assert given_grid(np.full((4, 7), 0.1), 3, 14).group_size == 2
    # Groups of 6, 6 and 2 inputs: three equal groups would be something else.
    assert given_grid(np.full((4, 3), 0.1), 3, 14, granularity=6).group_size == 6
    layer = lb.Layer(weight, np.eye(14))
    problem = quantization_problem(layer, bits=3, scale=[0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(problem.grid.scale, grid.scale)
    ragged = quantization_problem(layer, bits=3, scale=np.full((4, 3), 0.1), granularity=6)
    assert ragged.grid.group_size == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 0}, "bits is 0; choose an integer from 1 to 8"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 3.0}, "bits is 3.0"),
        ({"bits": True}, "bits is True"),
        ({"bits": 3, "range": "max"}, r"range is 'max'; did you mean minmax\? choose 'mse', 'minmax', 'gram',"),
        ({"bits": 1, "range": "max"}, "range is 'max'"),
        ({"bits": 3, "granularity": 0}, "granularity is 0"),
        ({"bits": 3, "granularity": -4}, "granularity is -4"),
        ({"bits": 3, "granularity": True}, "granularity is True"),
        ({"bits": 3, "granularity": "layer"}, "granularity is 'layer'"),
        ({"bits": 3, "granularity": 2.5}, "granularity is 2.5"),
    ],
)
def test_wrong_arguments(weight: Float, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        uniform_grid(weight, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [np.ones(4), np.ones((0, 4)), np.full((2, 2), np.nan), np.array([[1.0, np.inf]]), [["a"]], 3.0]
)
def test_wrong_weights(bad: object) -> None:
    for make in (lambda w: uniform_grid(w, 3), lambda w: codebook_grid(w, "nf4")):
        with pytest.raises(InputError, match="weight"):
            make(bad)


def test_wrong_codebooks(weight: Float) -> None:
    with pytest.raises(UnknownNameError, match=r"no codebook 'nf5'; did you mean nf4\? available: binary, tern"):
        codebook_grid(weight, "nf5")
    with pytest.raises(InputError, match="empty"):
        codebook_grid(weight, np.array([]))
    with pytest.raises(InputError, match="codebook holds 1 NaN"):
        codebook_grid(weight, [0.0, np.nan])


@pytest.mark.parametrize(
    ("scale", "bits", "granularity", "words"),
    [
        ([], 3, "channel", r"scale has shape \(0, 1\)"),
        ([0.1, np.nan], 3, "channel", "scale holds 1 NaN"),
        ([0.1, 0.1], 1, "channel", "from 2 to 8"),
        (np.ones((2, 3)), 3, None, "3 groups, which do not divide the 14 inputs"),
        (np.ones((2, 15)), 3, "channel", "but scale has 15;"),
        (np.ones((2, 3)), 3, "channel", "means 1 scale per channel, but scale has 3;"),
        (np.ones((2, 3)), 3, 4, "4 inputs per group means 4 scales"),
        (np.ones((2, 3)), 3, 0, "granularity is 0"),
    ],
)
def test_wrong_explicit_scales(scale: object, bits: int, granularity: Granularity, words: str) -> None:
    with pytest.raises(InputError, match=words):
        given_grid(scale, bits, 14, granularity)  # type: ignore[arg-type]


def test_grids_belong_to_weights_of_their_shape(small_layer: lb.Layer, rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match=r"shape \(5, 7\) but layer 'small' has \(5, 6\)"):
        quantization_problem(small_layer, grid=uniform_grid(rng.normal(size=(5, 7)), 3))
    with pytest.raises(InputError, match="either bits or grid"):
        quantization_problem(small_layer)
    with pytest.raises(InputError, match="either bits or grid"):
        quantization_problem(small_layer, 3, grid=uniform_grid(small_layer.weight, 3))
    with pytest.raises(InputError, match="call joint_problem with both"):
        quantization_problem(small_layer, 3, density=0.5)


def test_changing_the_weights_scale_changes_the_grid_with_them(weight: Float) -> None:
    for symmetric in (True, False):
        one = uniform_grid(weight, 3, symmetric)
        two = uniform_grid(4.0 * weight, 3, symmetric)
        np.testing.assert_array_equal(two.scale, 4.0 * one.scale)
        np.testing.assert_array_equal(two.zero_point, one.zero_point)
