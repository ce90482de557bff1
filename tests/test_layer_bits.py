"""What a compressed layer takes, counted by hand for every family."""

from __future__ import annotations

import math

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.exceptions import InputError
from layerbounds.problems.layer_bits import convention, layer_bits
from layerbounds.problems.storage import MASKS

OUT, IN = 6, 8


@pytest.fixture(scope="module")
def layer() -> lb.Layer:
    rng = np.random.default_rng(0)
    return lb.Layer.from_activations(rng.normal(size=(OUT, IN)), rng.normal(size=(40, IN)), "small")


def test_grids(layer: lb.Layer) -> None:
    q = lb.quantization_problem
    weights = OUT * IN
    assert layer_bits(q(layer, 3)) == 3 * weights + OUT * 16
    assert layer_bits(q(layer, 3, granularity="tensor")) == 3 * weights + 16
    assert layer_bits(q(layer, 3, granularity=4)) == 3 * weights + OUT * 2 * 16
    assert layer_bits(q(layer, 3, symmetric=False)) == 3 * weights + OUT * (16 + 3)
    assert layer_bits(q(layer, 3, symmetric=False, granularity="tensor")) == 3 * weights + 16 + 3
    given = q(layer, 3, scale=np.full(OUT, 0.5), zero_point=np.linspace(0.5, 3.5, OUT))
    assert layer_bits(given) == 3 * weights + OUT * (16 + 16)
    scattered = q(layer, 3, scale=np.arange(1.0, 1 + 2 * OUT).reshape(OUT, 2), g_idx=[0, 1] * 4)
    assert layer_bits(scattered) == 3 * weights + OUT * 2 * 16 + IN


def test_codebooks(layer: lb.Layer) -> None:
    q = lb.quantization_problem
    assert layer_bits(q(layer, codebook="nf4")) == 4 * OUT * IN + OUT * 16
    # 3⁸ = 6561 rows of ternary codes: 13 bits instead of 12.68.
    assert layer_bits(q(layer, codebook="ternary")) == OUT * (13 + 16)
    own = q(layer, codebook=[-1.0, -0.1, 0.3, 1.0])
    assert layer_bits(own) == 2 * OUT * IN + OUT * 16 + 4 * 16
    powers = lb.Grid(lb.codebook_grid(layer.weight, "mxfp4").codes, np.full((OUT, 2), 0.5) * [1, 2], 0.0, IN, 4)
    assert layer_bits(q(layer, grid=powers)) == math.ceil(IN * math.log2(15)) * OUT + OUT * 2 * 8
    assert layer_bits(q(layer, 2, codebook="free")) == OUT * (2 * IN + 4 * 16)


def test_free_scales(layer: lb.Layer) -> None:
    q = lb.quantization_problem
    assert layer_bits(q(layer, 2, scale="free")) == 2 * OUT * IN + OUT * 16
    assert layer_bits(q(layer, 2, scale="free", zero_point="free")) == 2 * OUT * IN + OUT * 18
    assert layer_bits(q(layer, 2, scale="free", zero_point="real")) == 2 * OUT * IN + OUT * 32
    assert layer_bits(q(layer, 2, scale="free", granularity="tensor")) == 2 * OUT * IN + 16
    assert layer_bits(q(layer, codebook="mxfp4", scale="free", granularity=4)) == OUT * (32 + 2 * 8)
    assert layer_bits(q(layer, codebook=[-1.0, 0.0, 0.1, 1.0], scale="free")) == OUT * (16 + 16) + 4 * 16


def test_pruning(layer: lb.Layer) -> None:
    p = lb.pruning_problem
    half = 16 * OUT * IN // 2
    sizes = {"none": 0, "bitmap": IN, "entropy": math.ceil(math.log2(70)), "metadata": 4 * 3}
    for mask, bits in sizes.items():
        assert layer_bits(p(layer, k=4), mask) == half + OUT * bits  # type: ignore[arg-type]
    assert layer_bits(p(layer, pattern="2:4")) == half + OUT * IN
    assert layer_bits(p(layer, k=4, pattern="block:2")) == half + OUT * 4
    assert layer_bits(p(layer, k=4, share=4)) == half + 2 * IN
    assert layer_bits(p(layer, k=4, share="all")) == half + IN
    assert layer_bits(p(layer, k=3, pattern="filter")) == 16 * 3 * IN + OUT
    assert layer_bits(p(layer, pattern="transposable:2:4")) == half + OUT * IN
    # 4 of 8 columns for 4 rows and for 2, 1 of those in each row.
    assert layer_bits(p(layer, pattern="venom:4:1:8")) == 16 * OUT + 2 * IN + 4 * OUT
    assert layer_bits(p(layer, k=IN)) == 16 * OUT * IN


def test_joint(layer: lb.Layer) -> None:
    j = lb.joint_problem
    assert layer_bits(j(layer, 4, pattern="2:4")) == OUT * (4 * 4 + IN + 16)
    assert layer_bits(j(layer, 4, k=IN)) == OUT * (4 * IN + 16)
    # Zero beside two levels: a bitmap says which weights are zero, places of kept ones do not.
    binary = j(layer, codebook="binary", k=4)
    assert layer_bits(binary, "bitmap") == OUT * (4 + IN + 16)
    assert layer_bits(binary, "metadata") == OUT * (math.ceil(4 * math.log2(3)) + 4 * 3 + 16)
    assert layer_bits(j(layer, weights=layer.weight, k=4)) == OUT * (16 * 4 + IN)


@pytest.mark.parametrize("mask", MASKS)
def test_agrees_with_the_storage_that_leaves_out_scales(mask: str) -> None:
    for name in ("conv1", "conv3"):
        layer = lb.demo_layers()[name]
        problems = [
            (lb.quantization_problem(layer, 4), layer.out_features * 16),
            (lb.pruning_problem(layer, density=0.25), 0),
            (lb.pruning_problem(layer, pattern="2:4"), 0),
            (lb.joint_problem(layer, 4, density=0.5), layer.out_features * 16),
        ]
        for problem, scales in problems:
            expected = problem.storage(mask) * layer.weight.size + scales  # type: ignore[arg-type]
            assert layer_bits(problem, mask) == pytest.approx(expected, rel=1e-12)  # type: ignore[arg-type]


def test_refusals_and_the_sentence(layer: lb.Layer) -> None:
    with pytest.raises(InputError, match="mask"):
        layer_bits(lb.quantization_problem(layer, 2), "some")  # type: ignore[arg-type]
    assert "masks (entropy)" in convention("entropy")
    assert "masks and biases are not counted" in convention("none")
