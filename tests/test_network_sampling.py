"""Channels drawn by their energy, and what is said of those that were not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layerbounds as lb
from layerbounds.exceptions import InputError
from layerbounds.network.sampling import Sample, allows_zero, draw, interval_text, percent, state
from layerbounds.theory.bounded_means import mean_at_least, mean_at_most

SHARES = st.floats(0.0, 1.0)
#: Populations on which bounds of means fail first: rare ones, rare zeros, small values with a rare large one.
HARD = [
    ([0.0, 1.0], [0.9, 0.1]),
    ([0.0, 1.0], [0.4, 0.6]),
    ([0.0, 1.0], [0.02, 0.98]),
    ([0.05, 1.0], [0.55, 0.45]),
    ([0.0, 0.05, 1.0], [0.3, 0.6, 0.1]),
    ([0.0, 0.4, 0.5], [0.45, 0.05, 0.5]),
    ([0.03, 0.04, 0.05], [0.2, 0.3, 0.5]),
]


def outcomes(count: int, draws: int) -> list[tuple[int, ...]]:
    """How often each of some values may be drawn."""
    every = itertools.product(range(draws + 1), repeat=count - 1)
    return [(*first, draws - sum(first)) for first in every if sum(first) <= draws]


def coverage(values: Sequence[float], probabilities: Sequence[float], draws: int, confidence: float) -> list[float]:
    """The probability that each bound holds, from all outcomes."""
    mean = float(np.dot(values, probabilities))
    held = [0.0, 0.0]
    for counts in outcomes(len(values), draws):
        ways = math.factorial(draws) / math.prod(math.factorial(c) for c in counts)
        chance = ways * math.prod(p**c for p, c in zip(probabilities, counts, strict=True))
        sample = np.repeat(values, counts)
        held[0] += chance * (mean_at_least(sample, confidence) <= mean * (1 + 1e-12))
        held[1] += chance * (mean_at_most(sample, confidence) >= mean * (1 - 1e-12))
    return held


@pytest.mark.parametrize("draws", [1, 4, 7])
@pytest.mark.parametrize(("values", "probabilities"), HARD)
def test_bounds_of_means_hold_with_their_probability(
    values: list[float], probabilities: list[float], draws: int
) -> None:
    assert min(coverage(values, probabilities, draws, 0.9)) >= 0.9 - 1e-12


@settings(max_examples=8, deadline=None)
@given(st.lists(SHARES, min_size=3, max_size=3), st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3))
def test_bounds_of_means_hold_on_any_population(values: list[float], weights: list[float]) -> None:
    probabilities = (np.array(weights) / sum(weights)).tolist()
    assert min(coverage(values, probabilities, 4, 0.8)) >= 0.8 - 1e-9


@settings(max_examples=25, deadline=None)
@given(st.lists(SHARES, min_size=1, max_size=6), st.integers(0, 5), SHARES, st.floats(0.5, 0.99))
def test_bounds_of_means_rise_with_every_value(values: list[float], place: int, raised: float, level: float) -> None:
    more = list(values)
    more[place % len(values)] = max(raised, more[place % len(values)])
    assert mean_at_least(more, level) >= mean_at_least(values, level) * (1 - 1e-12)
    assert mean_at_most(more, level) >= mean_at_most(values, level) - 1e-12
    assert mean_at_least(values, level) <= np.mean(values) + 1e-12 <= mean_at_most(values, level) + 2e-12


def test_bounds_of_means_are_tight_for_similar_values() -> None:
    # Nothing can say more than x·α^(1/n) of n equal values x: with probability 1 − α^(1/n) a value may be 0.
    for draws, share in ((4, 0.85), (8, 0.92), (32, 0.97)):
        values = np.full(draws, 0.05)
        best = 0.05 * 0.05 ** (1 / draws)
        assert share * best < mean_at_least(values) <= best
        hoeffding = math.sqrt(math.log(20) / (2 * draws))
        assert mean_at_most(values) < 0.05 + hoeffding
    assert mean_at_least(np.full(8, 1e-300)) == pytest.approx(1e-300 / 0.05 * mean_at_least(np.full(8, 0.05)))
    assert mean_at_least(np.full(3, 1e308)) > 1e307
    assert mean_at_least([0.0, 0.0]) == 0.0 and mean_at_most([1.0, 1.0]) == 1.0
    assert mean_at_least([0.5] * 6, 0.99) < mean_at_least([0.5] * 6, 0.5)


@pytest.mark.parametrize("values", [[], [-0.1], [[0.5]], [math.nan]])
def test_what_is_no_draw_is_refused(values: Any) -> None:
    for bound in (mean_at_least, mean_at_most):
        with pytest.raises(InputError, match="values"):
            bound(values)


def test_bounds_of_means_check_their_arguments() -> None:
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        mean_at_most([0.5, 1.5])
    for level in (0.0, 1.0, 95, math.nan, "0.9"):
        with pytest.raises(InputError, match="confidence is"):
            mean_at_least([0.5], level)  # type: ignore[arg-type]


SINGLE = [[c] for c in range(10)]
ENERGY = np.array([1.0, 0.0, 5.0, 2.0, 0.0, 3.0, 1.0, 4.0, 0.5, 0.0])


def test_draws_follow_the_energy() -> None:
    sample = draw([[c, c + 10] for c in range(10)], ENERGY, 9, 0, "a")
    assert sample.draws == 9 and len(sample.sets) == len(sample.counts) and sample.out == 20
    assert sample.channels == sorted(row for rows in sample.sets for row in rows) and not sample.whole
    assert sample.energy == tuple(ENERGY[rows[0]] for rows in sample.sets) and sample.whole_energy == ENERGY.sum()
    assert sample.share == pytest.approx(sum(sample.energy) / ENERGY.sum())
    counts = np.zeros(10)
    for seed in range(2000):
        one = draw(SINGLE, ENERGY * 1e-300, 5, seed, "a")
        counts[[rows[0] for rows in one.sets]] += one.counts
    expected = 10000 * ENERGY / ENERGY.sum()
    assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected + 1e-300))
    assert counts[ENERGY == 0].sum() == 0


def test_draws_depend_on_the_seed_and_the_name_alone() -> None:
    def drawn(count: int, seed: int, name: str) -> dict[int, int]:
        sample = draw(SINGLE, ENERGY, count, seed, name)
        return {rows[0]: n for rows, n in zip(sample.sets, sample.counts, strict=True)}

    assert drawn(6, 1, "a") == drawn(6, 1, "a")
    assert len({str(drawn(6, seed, name)) for seed in range(3) for name in "abc"}) > 5
    # Scaling does not matter, and a smaller sample is the first part of a larger one.
    assert draw(SINGLE, 8 * ENERGY, 6, 1, "a").counts == draw(SINGLE, ENERGY, 6, 1, "a").counts
    fewer, more = drawn(3, 1, "a"), drawn(8, 1, "a")
    assert all(more[row] >= count for row, count in fewer.items())
    # The stream is part of what a seed means: it must not change with versions.
    assert drawn(6, 0, "conv1") == {0: 1, 2: 2, 3: 1, 7: 1, 8: 1}


def test_small_layers_are_taken_whole() -> None:
    sample = draw(SINGLE, ENERGY, 10, 0, "a")
    assert sample.whole and sample.draws == 0 and sample.share == 1.0 and sample.channels == list(range(10))
    lower, upper = 0.1 * ENERGY, 0.3 * ENERGY
    found = state(sample, SINGLE, lower, upper, zero=False)
    assert found.certified == found.likely == found.drawn == pytest.approx((0.1, 0.3))
    assert str(found) == "certified: channels 0:10 of 10, which hold 100 % of the energy: 9.99 % to 30.1 % of theirs"
    dark = draw(SINGLE, np.zeros(10), 4, 0, "a")
    assert dark.channels == [0, 1, 2, 3] and dark.draws == 0 and not dark.whole and dark.share == 1.0
    assert state(dark, SINGLE[:4], np.zeros(4), np.zeros(4), zero=True).likely == (0.0, 0.0)
    assert state(dark, SINGLE[:4], np.zeros(4), np.zeros(4), zero=False).likely == (0.0, math.inf)


@pytest.mark.parametrize("zero", [True, False])
def test_statements_keep_what_is_certified_apart(zero: bool) -> None:
    units = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    energy = ENERGY.reshape(5, 2).sum(axis=1)
    sample = draw(units, energy, 4, 3, "a")
    assert 1 < len(sample.sets) < 5
    # A problem binds less together than what was drawn.
    sets = [[row] for row in reversed(sample.channels)]
    part = ENERGY[[rows[0] for rows in sets]]
    found = state(sample, sets, 0.2 * part, 0.5 * part, zero=zero)
    share = sample.share
    assert found.drawn == pytest.approx((0.2, 0.5))
    assert found.certified[0] == pytest.approx(0.2 * share)
    each = 0.975 if zero else 0.95
    assert found.likely[0] == pytest.approx(max(0.2 * share, mean_at_least([0.2] * 4, each)))
    if zero:
        assert found.certified[1] == pytest.approx(0.5 * share + 1 - share)
        assert found.likely[1] == pytest.approx(min(found.certified[1], mean_at_most([0.5] * 4, each)))
    else:
        assert found.certified[1] == found.likely[1] == math.inf
        assert found.to_dict()["likely"][1] is None
    text = str(found)
    assert text.count("certified: ") == 1 and "with 95 % confidence over the draw of 4 sets" in text
    assert text.index("so all channels: ") < text.index("confidence") and text.endswith("(no certificate)")
    json.dumps(found.to_dict(), allow_nan=False)
    again = Sample.from_dict(json.loads(json.dumps(sample.to_dict())))
    assert again == sample and state(again, sets, 0.2 * part, 0.5 * part, zero=zero) == found


def test_statements_hold_with_their_confidence() -> None:
    rng = np.random.default_rng(5)
    energy = rng.lognormal(sigma=1.0, size=30)
    best = energy * rng.beta(1, 8, size=30)
    lower, upper = best * rng.uniform(0.5, 1, size=30), np.minimum(best * rng.uniform(1, 1.5, size=30), energy)
    truth = best.sum() / energy.sum()
    sets, held, certain = [[c] for c in range(30)], 0, 0
    for seed in range(150):
        sample = draw(sets, energy, 5, seed, "a")
        rows = sample.channels
        found = state(sample, [[r] for r in rows], lower[rows], upper[rows], zero=True, confidence=0.8)
        held += found.likely[0] <= truth <= found.likely[1]
        certain += found.certified[0] <= truth <= found.certified[1]
    # 0.8 less four standard deviations of the simulation.
    assert certain == 150 and held >= 150 * (0.8 - 4 * math.sqrt(0.16 / 150))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sets": [[0]]}, "intervals"),
        ({"sets": [[0], [1]]}, "other channels"),
        ({"lower": [math.nan, 0.0]}, "0 ≤ lower ≤ upper"),
        ({"upper": [0.1, 0.0]}, "0 ≤ lower ≤ upper"),
        ({"confidence": 1.0}, "confidence is 1"),
    ],
)
def test_statements_check_their_arguments(change: dict[str, Any], words: str) -> None:
    sample = Sample(((0,), (2,)), (1, 2), (1.0, 5.0), 16.5, 10, 0)
    arguments: dict[str, Any] = {"sets": [[0], [2]], "lower": [0.1, 0.2], "upper": [0.2, math.inf], "zero": True}
    assert state(sample, **arguments).likely[1] <= 1.0
    with pytest.raises(InputError, match=words):
        state(sample, **{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "sample of channels is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"energy": ENERGY[:3]}, "10 sets"),
        ({"energy": -ENERGY}, "≥ 0"),
        ({"energy": np.full(10, 1e308)}, "unusable"),
        ({"sets": [], "energy": []}, "0 sets"),
    ],
)
def test_draws_check_their_arguments(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"sets": SINGLE, "energy": ENERGY, "count": 3, "seed": 0, "name": "a"}
    with pytest.raises(InputError, match=words):
        draw(**{**arguments, **change})


def test_which_problems_allow_zero() -> None:
    layer = lb.demo_layers()["conv3"]
    assert allows_zero(lb.quantization_problem(layer, bits=3))
    assert not allows_zero(lb.quantization_problem(layer, codebook="binary"))
    assert allows_zero(lb.pruning_problem(layer, density=0.5))
    assert allows_zero(lb.joint_problem(layer, codebook="binary", density=0.5))


def test_shares_are_printed_outward() -> None:
    assert percent(0.12345, down=True) == "12.3 %" and percent(0.12345, down=False) == "12.4 %"
    assert percent(1.0, down=True) == "100 %" and percent(0.0, down=False) == "0 %"
    assert percent(0.03125, down=True) == "3.12 %" and percent(1e-9, down=False) == "0.0001 %"
    assert interval_text(0.2, math.inf) == "at least 20.0 %"
