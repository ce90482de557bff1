"""The picture of weight tensors: ticks that can be read, whatever the range."""

from __future__ import annotations

import math

import pytest

from layerbounds.report.tensor_plots import tensors_figure
from layerbounds.theory.tensors import TensorRow


def rows(*kurtoses: float, sqnr: float = 30.0) -> list[TensorRow]:
    return [
        TensorRow(
            model="m", tensor=f"t{i}", excess_kurtosis=kurtosis, bits=4, quantization_sqnr_db=sqnr, pruning_sqnr_db=9.0
        )
        for i, kurtosis in enumerate(kurtoses)
    ]


@pytest.mark.parametrize(
    ("kurtoses", "numbers"),
    [
        ((0.1, 0.5), ["0", "1", "2", "5", "10"]),
        ((-1.2, 8.0), ["−1", "0", "1", "2", "5", "10"]),
        ((0.2, 60.0), ["0", "1", "2", "5", "10", "20", "50", "100"]),
        ((-0.9, 700.0), ["−1", "0", "1", "10", "100", "1 000"]),
        ((0.2, 3e5), ["0", "1", "10", "1 000", "$10^{5}$"]),
        ((math.nan,), ["0", "1", "2", "5", "10"]),
    ],
)
def test_numbers_at_the_axis_of_kurtosis(kurtoses: tuple[float, ...], numbers: list[str]) -> None:
    pytest.importorskip("matplotlib")
    _, right = tensors_figure(rows(*kurtoses), "model").axes
    assert [label.get_text() for label in right.get_xticklabels()] == numbers
    assert list(right.get_xticks(minor=True)) == []


@pytest.mark.parametrize("largest", [4.0, 24.0, 55.0])
def test_both_axes_of_ratios_have_the_same_numbers(largest: float) -> None:
    pytest.importorskip("matplotlib")
    left, _ = tensors_figure(rows(0.3, sqnr=largest), "model").axes
    assert list(left.get_xticks()) == list(left.get_yticks())
    assert left.get_xlim() == left.get_ylim()
    assert 3 <= len(left.get_xticks()) <= 8
