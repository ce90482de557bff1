"""Which normalisation a captured layer sees the output of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import layerbounds as lb

torch = pytest.importorskip("torch", reason="captures models")
nn = torch.nn


class Model(nn.Module):
    def __init__(self, between: Callable[[Any], Any], norm: Any = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4) if norm is None else norm
        self.other = nn.LayerNorm(4)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 2)
        self.between, self.calls = between, 0

    def forward(self, x: Any) -> Any:
        y = self.between(self.norm(x))
        return self.first(y).sum() + self.second(self.other(x)).sum()


def found(model: Any, count: int = 2) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 4, generator=generator) for _ in range(count)]
    layers = lb.capture(model, batches)
    return [layers[name].provenance.get("normalised_by") for name in ("first", "second")]


def test_the_output_of_a_norm_is_recognised() -> None:
    assert found(Model(lambda y: y)) == ["norm", "other"]
    assert found(Model(lambda y: y.reshape(2, 2, 4))) == ["norm", "other"]
    assert found(Model(lambda y: y, nn.RMSNorm(4))) == ["norm", "other"]


@pytest.mark.parametrize(
    "between",
    [lambda y: y + 0.0, lambda y: y.mul_(2.0), lambda y: y.T, lambda y: y.clone(), torch.relu],
    ids=["sum", "in place", "transposed", "copy", "activation"],
)
def test_what_is_made_of_it_is_not(between: Callable[[Any], Any]) -> None:
    assert found(Model(between)) == [None, "other"]


def test_norms_of_channels_and_batches_are_none() -> None:
    assert found(Model(lambda y: y, nn.BatchNorm1d(4))) == [None, "other"]
    assert found(Model(lambda y: y, nn.GroupNorm(2, 4))) == [None, "other"]
    assert found(Model(lambda y: y, nn.LayerNorm(4, elementwise_affine=False))) == [None, "other"]


def test_layers_behind_several_norms_have_none() -> None:
    class Twice(Model):
        def forward(self, x: Any) -> Any:
            return self.first(self.norm(x)).sum() + self.first(self.other(x)).sum() + self.second(self.other(x)).sum()

    assert found(Twice(lambda y: y)) == [None, "other"]
