"""Masks and counts of other tools are those that docs/patterns.md translates them to."""

from __future__ import annotations

import numpy as np
import pytest

import layerbounds as lb

torch = pytest.importorskip("torch", reason="the tools are PyTorch's")
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402


def layer_of(weight: torch.Tensor, seed: int = 0) -> lb.Layer:
    values = weight.detach().double().numpy()
    n = int(np.prod(values.shape[1:]))
    x = np.random.default_rng(seed).normal(size=(3 * n, n))
    return lb.Layer(values, x.T @ x / len(x))


def pruned_to(mask: np.ndarray, layer: lb.Layer) -> np.ndarray:
    return np.asarray(layer.weight * mask)


@pytest.mark.parametrize("channels", [3, 4, 5, 7, 10])
@pytest.mark.parametrize("amount", [0.0, 0.25, 0.3, 0.5, 0.9, 2])
@pytest.mark.parametrize("norm", [1, 2])
def test_ln_structured_of_input_channels(channels: int, amount: float, norm: int) -> None:
    torch.manual_seed(channels)
    module = nn.Conv2d(channels, 4, 3).double()
    layer = layer_of(module.weight)
    prune.ln_structured(module, "weight", amount=amount, n=norm, dim=1)
    mask = module.weight_mask.numpy()
    dropped = amount if isinstance(amount, int) else round(amount * channels)
    kept = channels - dropped
    assert np.count_nonzero(mask.any(axis=(0, 2, 3))) == kept
    problem = lb.pruning_problem(layer, k=kept, pattern="channel", refit=False)
    weights = module.weight.detach().numpy()
    assert lb.evaluate(problem, weights).feasible.all()
    np.testing.assert_array_equal(lb.run_heuristic("magnitude", problem, norm=norm), weights)
    if kept > 0:
        tighter = lb.pruning_problem(layer, k=kept - 1, pattern="channel", refit=False)
        assert list(lb.evaluate(tighter, weights).excess) == [1]


def test_halves_are_rounded_to_even_numbers_of_pruned_channels() -> None:
    """Where a density would keep another number than the tool: k says it."""
    layer = layer_of(nn.Linear(5, 2).weight)
    assert lb.pruning_problem(layer, density=0.5, pattern="channel").kept == 2
    assert 5 - round(0.5 * 5) == 3


def test_ln_structured_of_columns_of_a_linear_layer() -> None:
    torch.manual_seed(1)
    module = nn.Linear(9, 3).double()
    layer = layer_of(module.weight)
    prune.ln_structured(module, "weight", amount=4, n=2, dim=1)
    for pattern in ("channel", "column"):
        problem = lb.pruning_problem(layer, k=5, pattern=pattern, refit=False)
        assert lb.evaluate(problem, module.weight.detach().numpy()).feasible.all()


@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 3), (8, 16, 3, 2)])
def test_two_of_four_input_channels_as_asp_keeps_them(shape: tuple[int, ...]) -> None:
    """The mask is chosen on the weight with its input channels last, as ASP does for linear layers and convolutions."""
    torch.manual_seed(2)
    weight = torch.randn(shape, dtype=torch.float64)
    last = weight.movedim(1, -1).reshape(-1, 4)
    mask = torch.zeros_like(last).scatter_(1, last.abs().topk(2, dim=1).indices, 1.0)
    moved = weight.movedim(1, -1).shape
    pruned = (weight * mask.reshape(moved).movedim(-1, 1)).numpy()
    layer = layer_of(weight)
    problem = lb.pruning_problem(layer, pattern="2:4", axis="in_channels", refit=False)
    assert lb.evaluate(problem, pruned).feasible.all()
    np.testing.assert_array_equal(lb.run_heuristic("magnitude", problem), pruned)
    flat = lb.evaluate(lb.pruning_problem(layer, pattern="2:4", refit=False), pruned)
    assert flat.feasible.all() == (len(shape) == 2)


def test_whole_models_with_shared_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()
    images = [torch.randn(20, 2, 8, 8, dtype=torch.float64) + 0.5 for _ in range(2)]
    with pytest.warns(UserWarning, match="positions for"):
        result = lb.compress(model, images, pattern="channel", density=0.5, jobs=1)
    assert result.method == "obs" and not result.refused
    sets = {name: outcome.sets for name, outcome in result.layers.items()}
    assert sets == {"0": [[0, 1, 2, 3]], "2": [[0, 1], [2, 3]], "5": [[0, 1, 2]]}
    for name, outcome in result.layers.items():
        assert outcome.lower_bound is not None and outcome.upper_bound is not None
        assert len(outcome.error) == len(outcome.energy) == len(sets[name])
        assert np.all(outcome.lower_bound <= outcome.upper_bound * (1 + 1e-9))
        assert np.all(outcome.upper_bound <= outcome.error * (1 + 1e-9))
        weight = result.model.get_submodule(name).weight.detach().numpy().reshape(len(outcome.sets), -1, *(
            outcome.weight_shape[1:]
        ))  # fmt: skip
        kept = np.abs(weight).reshape(*weight.shape[:3], -1).sum(axis=(1, 3)) > 0
        assert np.all(kept.sum(axis=1) <= weight.shape[2] // 2)
        assert outcome.to_dict()["rows"] == outcome.sets
    with pytest.raises(lb.exceptions.InputError, match="share and axis are about patterns"):
        lb.compress(model, images, bits=3, share=2)
    with pytest.raises(lb.exceptions.InputError, match="leave out share, or bits"):
        lb.compress(model, images, bits=3, density=0.5, share=2)
