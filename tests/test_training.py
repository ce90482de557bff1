"""The parts of a training: schedules, quantizers and their gradients, masks, ranges."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from layerbounds.exceptions import InputError
from layerbounds.problems.patterns import parse_pattern
from layerbounds.training import Phase, Schedule

torch = pytest.importorskip("torch")

from layerbounds.training.batchnorm import reestimate  # noqa: E402
from layerbounds.training.losses import distillation  # noqa: E402
from layerbounds.training.pruners import ActivationMask, WeightMask  # noqa: E402
from layerbounds.training.quantizers import (  # noqa: E402
    QUANTIZERS,
    LearnedSteps,
    MinMax,
    Quantizer,
    TruncatedPowersOfTwo,
)
from layerbounds.training.ranges import MEMORY, RANGES, StaticRange, make_range  # noqa: E402
from layerbounds.training.settings import QUANTIZER_NAMES, RANGE_NAMES  # noqa: E402


def matrix(rows: int = 3, n: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_schedules_are_read_and_written() -> None:
    schedule = Schedule.parse("prune.weights@0.2:0.5/4 quantize@.6")
    assert schedule.phases == (
        Phase("prune", "weights", 0.2, 0.5, 4),
        Phase("quantize", "weights", 0.6, 1.0),
        Phase("quantize", "activations", 0.6, 1.0),
    )
    assert Schedule.parse(str(schedule)) == schedule
    assert schedule.order("weights") == "prune, quantize" and schedule.order("activations") == "quantize"
    assert Schedule.parse("quantize@0.1 prune@0.4").order("weights") == "quantize, prune"
    assert schedule.phase("prune", "activations") is None


def test_pruning_follows_the_cubic_of_zhu_and_gupta() -> None:
    phase = Phase("prune", "weights", 0.25, 0.75)
    assert [phase.share(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.0, 0.875, 1.0, 1.0]
    steps = Phase("prune", "weights", 0.0, 0.4, 4)
    # Steps at a quarter, a half, three quarters and the end of the ramp.
    assert [steps.share(p) for p in (0.09, 0.1, 0.19, 0.3, 0.4)] == [0.0, 37 / 64, 37 / 64, 63 / 64, 1.0]
    assert Phase("prune", "weights", 0.3, 0.3).share(0.3) == 1.0
    quantize = Phase("quantize", "weights", 0.3, 0.6)
    assert [quantize.on(p) for p in (0.29, 0.3, 1.0)] == [False, True, True]
    assert [quantize.adapting(p) for p in (0.29, 0.3, 0.6)] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no phase"),
        ("prune", "cannot be read at 'prune'"),
        ("prune@0.5:0.2", "before its start"),
        ("prune@1.5", "the start of prune is 1.5"),
        ("prune@0.1 prune.weights@0.3", "says twice when to prune weights"),
        ("quantize@0.1:0.3/4", "only pruning goes in steps"),
        ("prune@0.1:0.3/0", "the number of steps is 0"),
    ],
)
def test_schedules_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schedule.parse(text)


def test_names_are_those_of_the_parts() -> None:
    assert tuple(QUANTIZERS) == QUANTIZER_NAMES and RANGES == RANGE_NAMES


def test_importable_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import layerbounds.training as t; t.Schedule.parse('prune@0')"
    subprocess.run([sys.executable, "-c", code], check=True)


def surrogate(x: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> Callable[..., torch.Tensor]:
    """LSQ with the rounding of this place held fixed, as its gradients take it to be: piecewise linear."""
    offset = torch.round(x / scale) - x / scale

    def value(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        codes = x / scale
        inside = (codes > low) & (codes < high)
        return torch.where(inside, codes + offset, torch.clamp(codes, low, high)) * scale

    return value


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_of_learned_steps_against_finite_differences(rows: int, signed: bool) -> None:
    x = matrix()
    quantizer = LearnedSteps(3, rows, signed).double()
    quantizer.set_scale(torch.tensor([[0.3], [0.2], [0.5]], dtype=torch.float64)[:rows])
    low, high = int(quantizer.low), int(quantizer.high)
    down = matrix(seed=1)
    x.requires_grad_(True)
    (quantizer(x) * down).sum().backward()
    scale = quantizer.scale.detach()
    value = surrogate(x.detach(), scale, low, high)
    step = 1e-6

    def loss(x: torch.Tensor, scale: torch.Tensor) -> float:
        return float((value(x, scale) * down).sum())

    factor = 1.0 / (x.numel() / rows * high) ** 0.5
    assert quantizer.scale.grad is not None and x.grad is not None
    for row in range(rows):
        shift = torch.zeros_like(scale)
        shift[row] = step
        slope = (loss(x.detach(), scale + shift) - loss(x.detach(), scale - shift)) / (2 * step)
        assert float(quantizer.scale.grad[row]) == pytest.approx(factor * slope, rel=1e-6, abs=1e-8)
    for index in np.ndindex(*x.shape):
        shift = torch.zeros_like(x.detach())
        shift[index] = step
        slope = (loss(x.detach() + shift, scale) - loss(x.detach() - shift, scale)) / (2 * step)
        assert float(x.grad[index]) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    assert 0 < int((x.grad == 0).sum()) < x.numel()


@pytest.mark.parametrize("name", QUANTIZER_NAMES)
@pytest.mark.parametrize("rows", [1, 3])
def test_values_are_codes_times_scales_exactly(name: str, rows: int) -> None:
    x = matrix()
    quantizer = QUANTIZERS[name](3, rows).double()
    quantizer.begin(x)
    codes = quantizer.codes(x.reshape(rows, -1))
    assert torch.equal(quantizer(x), (codes * quantizer.scale).reshape(x.shape).detach())
    assert codes.min() >= -4 and codes.max() <= 3 and torch.equal(codes, torch.round(codes))
    assert not quantizer(torch.zeros_like(x)).any()


def test_learned_steps_begin_as_in_the_paper_and_stay_positive() -> None:
    x = matrix()
    quantizer = LearnedSteps(4, 3).double()
    quantizer.begin(x)
    assert torch.allclose(quantizer.scale.detach(), 2 * x.abs().mean(1, keepdim=True) / 7**0.5)
    pruned = torch.cat([x, torch.zeros_like(x)], dim=1)
    other = LearnedSteps(4, 3).double()
    other.begin(pruned)
    assert torch.allclose(other.scale, quantizer.scale)
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)
    quantizer.settle()
    assert (quantizer.scale > 0).all()


def test_minmax_clips_nothing_and_uses_its_range() -> None:
    x = matrix()
    quantizer = MinMax(3, 3).double()
    quantizer.begin(x)
    ratio = x / quantizer.scale
    assert ratio.max() <= 3 * (1 + 1e-12) and ratio.min() >= -4 * (1 + 1e-12)
    ends = torch.isclose(ratio.amax(1), torch.tensor(3.0).double()) | torch.isclose(
        ratio.amin(1), torch.tensor(-4.0).double()
    )
    assert ends.all()
    x.requires_grad_(True)
    quantizer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_powers_of_two_are_truncated() -> None:
    x = torch.tensor([[0.9, -0.9, 0.26, -0.24, 5.0]], dtype=torch.float64)
    quantizer: Quantizer = TruncatedPowersOfTwo(4).double()
    quantizer.scale.fill_(0.25)
    # Towards zero, not to the nearest: 0.9 is 0.75 and not 1.
    assert quantizer(x).tolist() == [[0.75, -0.75, 0.25, 0.0, 1.75]]
    quantizer.begin(x)
    exponent = -torch.log2(quantizer.scale)
    assert torch.equal(exponent, torch.round(exponent))
    errors = []
    for d in range(20):
        codes = np.clip(np.trunc(x.numpy() * 2.0**d), -8, 7)
        errors.append(np.square(codes / 2.0**d - x.numpy()).sum())
    assert float(exponent) == np.argmin(errors)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:3", "block:3", "2:4@in_channels"])
def test_masks_are_exact_and_keep_the_largest(pattern: str) -> None:
    rule = parse_pattern(pattern)
    shape = (4, 3, 1)
    structure = rule.structure(shape, 6)
    x = matrix(5, 12)
    mask = WeightMask(structure, 5)
    for share in (0.0, 0.4, 1.0):
        mask.update(x, share)
        used = [np.bincount(structure.group[np.unique(structure.unit[row])], minlength=len(structure.capacity))
                for row in mask.kept.numpy()]  # fmt: skip
        size = np.bincount(structure.group)
        most = size - np.round((size - structure.capacity) * share)
        assert (np.array(used) == most).all()
    for row, kept in zip(x.abs().numpy(), mask.kept.numpy(), strict=True):
        score = np.bincount(structure.unit, weights=row)
        assert np.array_equal(kept, structure.keep_largest(score))
    assert not structure.excess(mask(x).numpy()).any()


def test_ties_are_decided_by_the_second_magnitudes() -> None:
    mask = WeightMask(parse_pattern("unstructured").structure((4,), 2), 1)
    coarse, fine = torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.tensor([[0.9, 1.1, 1.2, 9.0]])
    mask.update(coarse, 1.0)
    assert mask.kept.tolist() == [[True, True, False, False]]
    mask.update(coarse, 1.0, fine)
    assert mask.kept.tolist() == [[False, True, True, False]]


def test_activations_are_kept_by_their_mean_over_a_window() -> None:
    mask = ActivationMask((4,), 0.5, 2)
    mask.update(1.0)
    assert mask.kept.all()
    mask.watch(torch.tensor([[9.0, 0.0, 0.0, 9.0]]))
    mask.watch(torch.tensor([[0.0, 2.0, -2.0, 0.0], [0.0, 2.0, -4.0, 0.0]]))
    mask.watch(torch.tensor([[1.0, 0.0, 1.0, 0.5]]))
    # The first batch has left the window.
    mask.update(1.0)
    assert mask.kept.tolist() == [False, True, True, False]
    assert mask(torch.ones(3, 4)).sum() == 6


def test_static_ranges_are_moving_averages_with_zero_a_level() -> None:
    quantize = StaticRange(4).double()
    x = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    assert torch.equal(quantize(x), x)
    quantize.watch(x)
    assert (float(quantize.low), float(quantize.high)) == (0.0, 2.0)
    quantize.watch(3 * x - 2)
    assert float(quantize.high) == pytest.approx(MEMORY * 2.0 + (1 - MEMORY) * 4.0)
    assert float(quantize.low) == pytest.approx((1 - MEMORY) * -0.5)
    wide = torch.linspace(-3, 5, 200, dtype=torch.float64).requires_grad_(True)
    value = quantize(wide)
    assert len(torch.unique(value)) == 16 and (value == 0).any()
    value.sum().backward()
    outside = (wide < quantize.low) | (wide > quantize.high)
    assert torch.equal(wide.grad == 0, outside.detach())


@pytest.mark.parametrize("name", RANGE_NAMES)
def test_ranges_of_activations(name: str) -> None:
    quantize = make_range(name, 4, -1).double()
    x = matrix(6, 8).abs()
    quantize.watch(x)
    value = quantize(x.requires_grad_(True))
    assert (value - x).abs().max() < x.max() / 4
    limit = 8 if name == "dynamic" else 16
    rows = value.detach() if name == "dynamic" else value.detach().reshape(1, -1)
    assert all(len(torch.unique(row)) <= limit for row in rows)
    value.sum().backward()
    assert x.grad is not None and (x.grad == 1).any()


def test_unsigned_codes_where_nothing_is_negative() -> None:
    for sign, low in ((1.0, 0), (-1.0, -8)):
        quantize = make_range("learned", 4, -1).double()
        quantize.watch(sign * matrix().abs())
        assert int(quantize.quantizer.low) == low


def test_distillation_is_zero_for_the_teacher_and_its_gradient_is_that_of_the_soft_targets() -> None:
    teacher, output = matrix(5, 3), matrix(5, 3, seed=1).requires_grad_(True)
    assert float(distillation(teacher, teacher, 4.0)) == pytest.approx(0.0, abs=1e-12)
    distillation(output, teacher, 4.0).backward()
    soft = torch.softmax(output.detach() / 4, 1) - torch.softmax(teacher / 4, 1)
    assert torch.allclose(output.grad, 4.0 * soft / 5)


def test_batch_normalisation_is_counted_anew() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).double()
    batches = [matrix(8, 4, seed) for seed in range(3)]
    model.train()
    assert reestimate(model, batches) == 1
    outputs = [model[0](x).detach() for x in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([y.mean(0) for y in outputs]).mean(0))
    assert torch.allclose(model[1].running_var, torch.stack([y.var(0) for y in outputs]).mean(0))
    assert model[1].momentum == 0.1 and not model.training and not model[1].training
    assert reestimate(torch.nn.Linear(2, 2), [torch.ones(1, 2)]) == 0
