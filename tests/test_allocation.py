"""The knapsack is exact, its intervals hold for all errors within theirs, and the regret is the worst case."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbounds.allocation import LayerOptions, Option, allocate, bits_of_budget, front, regret, score
from layerbounds.allocation.fixed_point import fixed_point, rounded_down, rounded_up
from layerbounds.allocation.knapsack import Item, pareto, solve
from layerbounds.exceptions import InputError

SIZES = st.one_of(st.integers(0, 6), st.integers(0, 2**45))
ERRORS = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0]),
    st.floats(0.0, 4.0),
    st.floats(0.0, 1e200, allow_subnormal=True),
    st.floats(0.0, 1e-300, allow_subnormal=True),
)


@st.composite
def tables(draw: st.DrawFn, infinite: bool = True) -> list[LayerOptions]:
    layers = []
    for i in range(draw(st.integers(1, 4))):
        options = []
        for j in range(draw(st.integers(1, 3))):
            ends = sorted([draw(ERRORS), draw(ERRORS)])
            upper = math.inf if infinite and draw(st.integers(0, 7)) == 0 else ends[1]
            options.append(Option(f"o{j}", draw(SIZES), ends[0], upper))
        scale = draw(st.sampled_from([1.0, 1.0, 0.0, 0.3, 1e-90, 1e90]))
        layers.append(LayerOptions(f"l{i}", 10, tuple(options), scale))
    return layers


def exact(layer: LayerOptions, choice: int, end: str) -> Fraction | None:
    value = getattr(layer.options[choice], end)
    if layer.scale == 0.0:
        return Fraction(0)
    return None if value == math.inf else Fraction(layer.scale) * Fraction(value)


def total(layers: Sequence[LayerOptions], choice: Sequence[int], end: str) -> Fraction | None:
    parts = [exact(layer, c, end) for layer, c in zip(layers, choice, strict=True)]
    return None if None in parts else sum((p for p in parts if p is not None), Fraction(0))


def fitting(layers: Sequence[LayerOptions], budget: int) -> list[tuple[int, ...]]:
    every = itertools.product(*[range(len(layer.options)) for layer in layers])
    return [c for c in every if sum(layer.options[i].storage for layer, i in zip(layers, c, strict=True)) <= budget]


def least(layers: Sequence[LayerOptions], budget: int, end: str) -> Fraction | None:
    values = [total(layers, choice, end) for choice in fitting(layers, budget)]
    return min((v for v in values if v is not None), default=None)


def numbers(layers: Sequence[LayerOptions], choices: dict[str, str]) -> list[int]:
    return [layer.index(choices[layer.name]) for layer in layers]


def worst(layers: Sequence[LayerOptions], budget: int, choice: Sequence[int]) -> Fraction | None:
    """The largest excess of a choice over another one that fits, where layers with the same choice cancel."""
    found = Fraction(0)
    for other in fitting(layers, budget):
        excess = Fraction(0)
        for layer, mine, its in zip(layers, choice, other, strict=True):
            high, low = exact(layer, mine, "upper"), exact(layer, its, "lower")
            if mine != its and high is None:
                return None
            excess += 0 if mine == its else (high or Fraction(0)) - (low or Fraction(0))
        found = max(found, excess)
    return found


@given(tables(), st.floats(0.0, 1.1))
@settings(max_examples=100, deadline=None)
def test_against_all_allocations(layers: list[LayerOptions], share: float) -> None:
    smallest = sum(min(o.storage for o in layer.options) for layer in layers)
    largest = sum(max(o.storage for o in layer.options) for layer in layers)
    budget = smallest + int(share * (largest - smallest))
    found = allocate(layers, budget)
    choice = numbers(layers, found.choices)
    assert found.storage == sum(layer.options[c].storage for layer, c in zip(layers, choice, strict=True)) <= budget
    low, high = least(layers, budget, "lower"), least(layers, budget, "upper")
    assert low is not None
    assert found.best[0] <= low
    if high is None:
        assert found.best[1] == math.inf
    else:
        assert found.best[1] >= high
        # No wider than the unit, which is a share of the best total, makes it.
        assert found.best[1] <= high * (1 + Fraction(1, 2**40)) + Fraction(5e-324)
        assert found.best[0] >= low - high * Fraction(1, 2**40) - Fraction(5e-324)
    mine = total(layers, choice, "upper")
    assert found.error[0] <= (total(layers, choice, "lower") or 0)
    assert (found.error[1] == math.inf) if mine is None else (found.error[1] >= mine)
    excess = worst(layers, budget, choice)
    if mine is None:
        assert found.regret == math.inf
    else:
        assert excess is not None
        assert excess <= found.regret <= excess * (1 + Fraction(1, 2**40)) + (high or 0) / 2**40 + Fraction(5e-324)
    for rival in found.rivals:
        other = [layer.index(rival.name) for layer in layers]
        gain = [total(layers, other, "lower"), mine]
        if rival.proven and None not in gain and choice != other:
            assert worst(layers, budget, choice) is not None
            # What is proven holds at every corner: the choice is better even at its worst.
            parts = [
                (exact(layer, o, "lower") or 0) - (exact(layer, c, "upper") or 0)
                for layer, o, c in zip(layers, other, choice, strict=True)
                if o != c
            ]
            assert sum(parts) > 0
    if excess is not None and excess > 1e-290 and mine is not None:
        assert found.where_more_search_helps or all(
            layer.options[c].lower == layer.options[c].upper for layer, c in zip(layers, choice, strict=True)
        )


def corners(layers: Sequence[LayerOptions]) -> list[list[list[float]]]:
    """All errors in which each is an end of its interval."""
    ends = [[(o.lower, o.upper) for o in layer.options] for layer in layers]
    flat = [pair for layer in ends for pair in layer]
    found = []
    for chosen in itertools.product(*flat):
        values = iter(chosen)
        found.append([[next(values) for _ in layer] for layer in ends])
    return found


@pytest.mark.parametrize("seed", range(2))
def test_regret_is_the_worst_corner(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = []
    for i in range(3):
        options = []
        for j in range(3):
            low = float(rng.integers(0, 8))
            options.append(Option(f"o{j}", 2 * (j + 1) + int(rng.integers(2)), low, low + float(rng.integers(0, 4))))
        layers.append(LayerOptions(f"l{i}", 1, tuple(options)))
    budget = 12
    for choice in fitting(layers, budget):
        named = {layer.name: layer.options[c].name for layer, c in zip(layers, choice, strict=True)}
        largest = 0.0
        for errors in corners(layers):
            costs = [sum(e[c] for e, c in zip(errors, other, strict=True)) for other in fitting(layers, budget)]
            mine = sum(e[c] for e, c in zip(errors, choice, strict=True))
            largest = max(largest, mine - min(costs))
        assert regret(layers, budget, named) == pytest.approx(largest, rel=1e-12, abs=1e-12)
        assert regret(layers, budget, named) >= largest
    best = allocate(layers, budget)
    assert best.regret <= min(r.gain[1] for r in best.rivals) + sum(o.upper for la in layers for o in la.options)


@given(tables(infinite=False))
@settings(max_examples=40, deadline=None)
def test_front_against_each_budget(layers: list[LayerOptions]) -> None:
    points = front(layers)
    assert [p.storage for p in points] == sorted({p.storage for p in points})
    ends = [(p.lower, p.upper) for p in points]
    assert ends == sorted(ends, reverse=True)
    for point in points:
        low, high = least(layers, point.storage, "lower"), least(layers, point.storage, "upper")
        assert low is not None and high is not None
        assert point.lower <= low
        assert high <= point.upper
        choice = numbers(layers, point.choices)
        assert (total(layers, choice, "upper") or 0) <= point.upper
    # Between two points nothing changes.
    unit = 2.0**-50 * points[0].upper
    for point, later in itertools.pairwise(points):
        one = front(layers, [later.storage - 1])[0]
        assert one.upper == pytest.approx(point.upper, rel=1e-9, abs=unit)
    assert front(layers, [points[-1].storage + 5])[0].upper == pytest.approx(points[-1].upper, rel=1e-9, abs=unit)


def test_front_without_finite_ends_begins_later() -> None:
    layers = [LayerOptions("a", 1, (Option("small", 1, 0.5, math.inf), Option("large", 3, 0.1, 0.2)))]
    points = front(layers)
    assert [(p.storage, p.upper) for p in points] == [(1, math.inf), (3, 0.2)]
    assert points[0].choices == {} and points[0].lower == 0.5


def many(layers: int, options: int, seed: int, shapes: Sequence[int] = ()) -> list[LayerOptions]:
    rng = np.random.default_rng(seed)
    table = []
    for i in range(layers):
        weights = shapes[i % len(shapes)] if shapes else int(rng.integers(400, 40000))
        middle = math.exp(rng.normal(0.0, 1.5)) * 4.0 ** -np.arange(2.0, 2 + options)
        low, high = middle * np.exp(-0.4 * rng.random(options)), middle * np.exp(0.4 * rng.random(options))
        bits = [weights * b + int(rng.integers(0, 16 * math.isqrt(weights))) for b in range(2, 2 + options)]
        entries = [Option(f"INT{b + 2}", bits[b], float(low[b]), float(high[b])) for b in range(options)]
        table.append(LayerOptions(f"l{i}", weights, tuple(entries)))
    return table


SHAPES = [2**24, 2**24, 2**22, 2**22, 2**26, 2**26, 2**26]


@pytest.mark.parametrize(
    ("count", "options", "shapes"),
    [(20, 10, []), pytest.param(224, 8, SHAPES, marks=pytest.mark.slow)],
)
def test_networks(count: int, options: int, shapes: list[int]) -> None:
    layers = many(count, options, 1, shapes)
    budget = bits_of_budget(layers, 3.2)
    found = allocate(layers, budget)
    assert 0 < found.best[0] <= found.best[1] <= found.error[1]
    assert found.best[1] - found.best[0] >= found.regret * (1 - 1e-12) - (found.error[1] - found.best[1])
    assert found.relative_regret < 0.5
    assert {r.name for r in found.rivals} == {"INT2", "INT3"}
    # Closing the ends that are named takes regret away.
    closed = {(end.layer, end.option): end.end for end in found.where_more_search_helps}
    moved = []
    for layer in layers:
        options = []
        for option in layer.options:
            end = closed.get((layer.name, option.name))
            low = option.upper if end == "lower" else option.lower
            high = option.lower if end == "upper" else option.upper
            options.append(Option(option.name, option.storage, low, high))
        moved.append(LayerOptions(layer.name, layer.weights, tuple(options)))
    assert score(moved, found.choices, budget).regret < found.regret


def test_a_network_and_its_front() -> None:
    layers = many(20, 10, 3)
    points = front(layers)
    assert len(points) > 100
    budget = bits_of_budget(layers, 3.0)
    place = max(i for i, p in enumerate(points) if p.storage <= budget)
    found = allocate(layers, budget)
    assert found.best == pytest.approx((points[place].lower, points[place].upper), rel=1e-12)


def test_many_points_are_taken_at_some_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbounds.allocation.budgets.MOST_POINTS", 5)
    layers = many(6, 6, 4)
    points = front(layers)
    assert len(points) == 65
    uppers = [p.upper for p in points]
    assert uppers == sorted(uppers, reverse=True)


def item(size: list[int], cost: list[int]) -> Item:
    return Item(np.array(size), np.array(cost), np.ones(len(size), dtype=bool))


def test_knapsack_of_ties_and_large_numbers() -> None:
    equal = [item([3, 3, 3], [5, 4, 4]), item([0], [7])]
    assert solve(equal, 3) == (11, [1, 0])
    assert solve(equal, 2) is None
    large = [item([2**50, 1], [0, 2**58]), item([2**50, 2], [0, 2**58 - 1])]
    assert solve(large, 2**50 + 2) == (2**58 - 1, [0, 1])
    assert solve(large, 2**50 + 1) == (2**58, [1, 0])
    sizes, costs, choices = pareto(large, 100) or ([], [], [])
    assert list(zip(sizes, costs, choices, strict=True)) == [
        (3, 2**59 - 1, [1, 1]), (2**50 + 1, 2**58, [1, 0]), (2**50 + 2, 2**58 - 1, [0, 1]), (2**51, 0, [0, 0]),
    ]  # fmt: skip
    assert pareto([*large] * 10, 3) is None
    blocked = Item(np.array([1]), np.array([1]), np.array([False]))
    assert solve([blocked], 9) is None and pareto([blocked], 9) is None


def test_a_huge_error_of_one_option_does_not_blur_the_others() -> None:
    layers = [
        LayerOptions("a", 1, (Option("bad", 1, 0.0, 1e300), Option("good", 2, 1.0, 2.0))),
        LayerOptions("b", 1, (Option("bad", 1, 0.0, 1e290), Option("good", 2, 1e-9, 3e-9))),
    ]
    found = allocate(layers, 4)
    assert found.choices == {"a": "good", "b": "good"}
    assert found.best[1] == pytest.approx(2.0 + 3e-9, rel=1e-15)
    table = fixed_point(layers, 4)
    assert table.unit < 1e-15
    assert found.rivals[0].gain[0] == pytest.approx(-2.0 - 3e-9)


def test_without_finite_ends_the_lower_ones_choose() -> None:
    layers = [
        LayerOptions(name, 1, (Option("small", 2, 3.0, math.inf), Option("large", 4, 1.0, math.inf))) for name in "ab"
    ]
    found = allocate(layers, 6)
    assert found.best == (4.0, math.inf) and found.error == (4.0, math.inf) and found.regret == math.inf
    assert found.relative_regret == math.inf and found.where_more_search_helps[0].gain == math.inf
    assert "infinite" in found.statement() and "∞" in found.statement()


def test_roundings_are_outward() -> None:
    third = Fraction(1, 3)
    assert Fraction(rounded_down(third)) < third < Fraction(rounded_up(third))
    assert rounded_down(Fraction(1, 2)) == 0.5 == rounded_up(Fraction(1, 2))
    assert rounded_up(Fraction(2) ** 1100) == math.inf
    assert rounded_down(Fraction(2) ** 1100) == np.finfo(np.float64).max
    assert rounded_down(Fraction(1, 2**1200)) == 0.0 and rounded_up(Fraction(1, 2**1200)) == 5e-324


SMALL = [LayerOptions("a", 4, (Option("x", 8, 1.0, 2.0), Option("y", 16, 0.5, 0.5)), 0.5)]


def test_records_and_properties() -> None:
    found = allocate(SMALL, 16).saying("counted so", "weighted so")
    assert (found.choices, found.budget, found.bits_per_weight, found.weights) == ({"a": "y"}, 4.0, 4.0, 4)
    assert found.regret == found.relative_regret == 0.0 and found.where_more_search_helps == ()
    assert found.interval("a") == (0.25, 0.25) == found.error
    assert [(r.name, r.proven, r.gain) for r in found.rivals] == [("x", True, (0.25, 0.75)), ("y", False, (0.0, 0.0))]
    record = found.to_dict()
    assert record["layers"] == [
        {"layer": "a", "weights": 4, "scale": 0.5, "option": "y", "storage": 16, "error": [0.25, 0.25]}
    ]
    assert record["convention"] == "counted so" and record["objective"] == "weighted so"
    assert score(SMALL, {"a": "x"}).budget_bits == 8
    given_up = score(SMALL, {"a": "x"}, 16)
    assert given_up.regret == 0.75 and given_up.where_more_search_helps[0].to_dict() == {
        "layer": "a", "option": "x", "end": "upper", "gain": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: allocate(SMALL, 7), "less than the smallest options take, 8 bits"),
        (lambda: allocate([], 7), "at least one"),
        (lambda: allocate([*SMALL, *SMALL], 70), "'a' is there twice"),
        (lambda: allocate(SMALL, -1), "budget_bits is -1"),
        (lambda: score(SMALL, {"a": "y"}, 8), "takes 16 bits, more than the 8"),
        (lambda: score(SMALL, {"a": "z"}), "no option 'z'; choose x, y"),
        (lambda: score(SMALL, {}), "nothing is chosen for layer 'a'"),
        (lambda: score(SMALL, {"a": "x", "b": "x"}), "no layer 'b'"),
        (lambda: front(SMALL, [3]), "the smallest options take 8"),
        (lambda: Option("x", 1, 2.0, 1.0), "lower end must not exceed"),
        (lambda: Option("x", 1, math.inf, math.inf), "lower of option 'x'"),
        (lambda: Option("x", -1, 0.0, 1.0), "storage of option 'x'"),
        (lambda: LayerOptions("a", 1, ()), "pass at least one Option"),
        (lambda: LayerOptions("a", 1, (SMALL[0].options[0],) * 2), "twice"),
        (lambda: LayerOptions("a", 1, SMALL[0].options, math.nan), "scale of layer 'a'"),
        (lambda: allocate([LayerOptions("a", 1, (Option("x", 2**53, 0.0, 1.0),)),
                           LayerOptions("b", 1, (Option("x", 1, 0.0, 1.0),))], 2**54), "bits together"),
        (lambda: bits_of_budget(SMALL, math.nan), "budget is nan"),
    ],
)  # fmt: skip
def test_refusals(call: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert words in str(caught.value) and "\n" not in str(caught.value)
