"""Rows of a convolution's inputs, against PyTorch's own convolutions and unfold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import layerbounds as lb

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 4, 9), {"kernel_size": 3}),
    ((2, 4, 9), {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 4}),
    ((2, 4, 7, 8), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 3)}),
    ((2, 4, 7, 8), {"kernel_size": 3, "padding": "same", "groups": 2}),
    ((2, 4, 7, 8), {"kernel_size": (2, 4), "padding": "same", "dilation": 2}),
    ((1, 2, 5, 6, 4), {"kernel_size": (3, 2, 1), "stride": 2, "padding": 1}),
]


@pytest.mark.parametrize(("shape", "options"), CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_rows_times_weights_are_the_convolution(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    dims, groups = len(shape) - 2, options.get("groups", 1)
    size = options["kernel_size"]
    kernel = (size,) * dims if isinstance(size, int) else size
    weight = torch.randn((6 * groups, shape[1] // groups, *kernel), generator=generator, dtype=torch.float64)
    call = {key: value for key, value in options.items() if key != "kernel_size"}
    expected = getattr(functional, f"conv{dims}d")(x, weight, **call).movedim(1, -1).reshape(-1, len(weight))
    rows = lb.im2col(x.numpy(), **options)
    of_tensor = lb.im2col(x, **options)
    assert isinstance(rows, np.ndarray) and isinstance(of_tensor, torch.Tensor)
    np.testing.assert_array_equal(of_tensor.numpy(), rows)
    matrices = weight.reshape(groups, 6, -1).numpy()
    products = np.concatenate(
        [r @ m.T for r, m in zip(rows.reshape(groups, -1, rows.shape[-1]), matrices, strict=True)], 1
    )
    np.testing.assert_allclose(products, expected.numpy(), atol=1e-12)


def test_rows_are_those_of_unfold_and_pads_may_differ() -> None:
    x = torch.arange(2 * 3 * 5 * 6, dtype=torch.float32).reshape(2, 3, 5, 6)
    expected = (
        functional.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)).transpose(1, 2).flatten(0, 1)
    )
    found = lb.im2col(x, (3, 2), (2, 1), (1, 0), (1, 2))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    uneven = lb.im2col(x, 3, padding=((0, 2), (1, 0)))
    assert torch.equal(uneven, lb.im2col(functional.pad(x, (1, 0, 0, 2)), 3))


def test_a_layer_of_rows_is_that_of_capture(rng: np.random.Generator) -> None:
    module = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.from_numpy(rng.normal(size=(5, 3, 8, 8)).astype(np.float32))
    captured = lb.capture(torch.nn.Sequential(module), [x])["0"]
    layer = lb.Layer.from_activations(module.weight, lb.im2col(x, 3, 2, 1))
    np.testing.assert_allclose(layer.gram, captured.gram, rtol=1e-12, atol=1e-12)
    assert layer.samples == captured.samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.ones((3, 4))}, "x has shape"),
        ({"kernel_size": 0}, "kernel_size is 0"),
        ({"kernel_size": (2, 2, 2)}, "kernel_size has 3 numbers for 2 axes"),
        ({"kernel_size": 6}, "covers 6 positions along axis 2 of x, which has 5"),
        ({"padding": "full"}, "padding is 'full'"),
        ({"padding": -1}, "padding is -1"),
        ({"groups": 2}, "2 groups do not divide the 3 channels"),
    ],
)
def test_wrong_sizes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(lb.LayerboundsError, match=message):
        lb.im2col(**{"x": np.ones((1, 3, 5, 5)), "kernel_size": 3, **arguments})
