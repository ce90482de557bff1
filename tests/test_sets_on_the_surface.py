"""Masks that several output channels share, wherever users meet them: tables, files, comparisons, contests, models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import brute_force

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.contests import versus_layers
from layerbounds.contests.contest import Contest, Rules
from layerbounds.contests.inclusion import Inclusion
from layerbounds.contests.match import Contender, Match
from layerbounds.exceptions import InputError
from layerbounds.problems.parts import Parts, contains
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.rows import common_sets, noun, rows_text, sets_within
from layerbounds.report.plots import plot_trace
from layerbounds.report.tables import channel_table, kept_lines, total_line

OPTIONS: dict[str, Any] = {"time_limit": 5.0, "jobs": 1}


def layer_of(rows: int, shape: tuple[int, ...], seed: int = 3, dead: tuple[int, ...] = ()) -> lb.Layer:
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    x = rng.normal(size=(4 * n, n)) + 0.6 * rng.normal(size=(4 * n, 1))
    x[:, list(dead)] = 0.0
    return lb.Layer(rng.normal(size=(rows, *shape)), x.T @ x / len(x), "net.conv")


@pytest.fixture
def layer() -> lb.Layer:
    return layer_of(5, (4, 2))


def cells(table: Any, column: int) -> list[str]:
    return [str(cell) for cell in table.columns[column].cells]


@pytest.mark.parametrize(
    ("rows", "text"), [([3], "3"), ([0, 1, 2], "0:3"), ([0, 4, 5, 9], "0,4:6,9"), ([], ""), ([7, 8], "7:9")]
)
def test_rows_are_named_as_the_option_channels_reads_them(rows: list[int], text: str) -> None:
    from layerbounds.cli.options import parse_channels

    assert rows_text(rows) == text
    assert not rows or parse_channels(text, 10) == rows


def test_common_sets_are_those_that_nobody_divides() -> None:
    assert common_sets([[0], [1], [2], [3]], [[0], [1], [2], [3]]) == [[0], [1], [2], [3]]
    assert common_sets([[0, 1], [2], [3]], [[0], [1, 2], [3]]) == [[0, 1, 2], [3]]
    # A chain of overlapping sets is one.
    assert common_sets([[3, 4], [0, 1], [2], [5]], [[1, 2], [0], [5], [3], [4]]) == [[0, 1, 2], [3, 4], [5]]
    assert sets_within([[3, 4], [0, 1], [2], [5]], [[0, 1, 2], [3, 4], [5]]) == [[1, 2], [0], [3]]
    assert noun([[0], [1]], 1) == "channel" and noun([[0, 1]], 2) == "sets of channels"


def test_tables_and_records_have_a_row_for_each_set(layer: lb.Layer, tmp_path: Path) -> None:
    solution = lb.solve(lb.pruning_problem(layer, k=2, pattern="channel", share=2), **OPTIONS)
    table = channel_table(solution)
    assert str(table.columns[0].header) == "channels" and cells(table, 0) == ["0:2", "2:4", "4"]
    assert "3 of 3 sets of channels proven optimal" in total_line(solution)
    entries = json.loads(json.dumps(solution.to_dict()))["channels"]
    assert [entry["rows"] for entry in entries] == [[0, 1], [2, 3], [4]]
    assert [entry["channel"] for entry in entries] == [None, None, 4]
    matrix = solution.weights.reshape(5, -1)
    for rows, entry, line in zip(solution.sets, entries, kept_lines(solution), strict=True):
        kept = np.flatnonzero(np.abs(matrix[rows].reshape(len(rows), 4, 2)).sum(axis=(0, 2)))
        assert entry["kept"] == kept.tolist() and len(kept) == 2
        assert line == f"channels {rows_text(rows)} keep units {', '.join(map(str, kept))}"
    plot_trace(solution, tmp_path / "trace.svg")
    part = lb.solve(solution.problem, channels=[3, 2], **OPTIONS)
    assert part.sets == [[2, 3]] and "1 of 1 set of channels proven optimal (2 of 5 channels)" in total_line(part)
    np.testing.assert_allclose(part.weights.reshape(2, -1), matrix[[3, 2]], rtol=1e-6, atol=1e-9)


def test_tables_of_one_scale_for_all_channels(layer: lb.Layer) -> None:
    """The other problems that bind rows take the same way."""
    solution = lb.solve(lb.quantization_problem(layer, 1, scale="free", granularity="tensor"), **OPTIONS)
    assert cells(channel_table(solution), 0) == ["0:5"] and "1 set of channels" in total_line(solution)
    assert solution.kept_units is None and kept_lines(solution) == []
    (entry,) = json.loads(json.dumps(solution.to_dict()))["channels"]
    assert entry["rows"] == [0, 1, 2, 3, 4] and len(entry["scale"]) == 5


def test_evaluation_and_warm_starts(layer: lb.Layer) -> None:
    problem = lb.pruning_problem(layer, k=2, pattern="channel", share=2)
    dense = lb.evaluate(problem, layer.weight)
    assert dense.error.shape == (3,) and list(dense.excess) == [2, 2, 2] and not dense.feasible.any()
    assert dense.describe() == "3 sets of channels not allowed (violation up to 2)"
    solution = lb.solve(problem, **OPTIONS)
    again = lb.solve(problem, warm_start=solution.weights, time_limit=0.0, jobs=1)
    assert np.all(again.upper_bound <= solution.upper_bound * (1 + 1e-9))
    score = lb.evaluate(problem, solution.weights)
    np.testing.assert_allclose(score.error, solution.upper_bound, rtol=1e-9)
    # Each row on its own fits, but not with the others: one unit kept in one row counts for all.
    weights = np.zeros((5, 8))
    weights[0, :4] = weights[1, 4:] = 1.0
    score = lb.evaluate(problem, weights)
    assert list(score.excess) == [2, 0, 0] and list(score.feasible) == [False, True, True]


def test_solve_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, weights = tmp_path / "out.json", tmp_path / "weights.safetensors"
    options = ["--layer", "conv3", "--pattern", "position", "--k", "2", "--share", "9", "--jobs", "1"]
    assert main(["solve", *options, "--json", str(out), "--save-weights", str(weights)]) == 0
    text = capsys.readouterr().out
    assert "0:9" in text and "18:24" in text and "3 of 3 sets of channels" in text and "channels 18:24 keep" in text
    record = json.loads(out.read_text())
    assert [len(entry["rows"]) for entry in record["channels"]] == [9, 9, 6]
    assert record["options"]["share"] == "9" and record["layer"]["sets"] == 3
    assert main(["compare", *options, "--weights", str(weights), "--methods", "magnitude", "--json", str(out)]) == 0
    records = json.loads(out.read_text())["records"]
    given = next(entry for entry in records if entry["kind"] == "given")
    assert given["feasible"] and given["excess_percent"] < 1e-3
    assert "3 of 3 sets of channels proven optimal" in records[0]["note"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--pattern channel --density .5 --channels 0:2", "output channels 0 to 23 share one mask; choose channels 2,"),
        ("--pattern 2:4 --share none", "share is 'none'; write a number of output channels, or all"),
        ("--pattern 2:4 --share 0", "choose an integer ≥ 1"),
        ("--pattern channel --density .5 --axis flat", "axis is for N:M patterns, and pattern is channel"),
        ("--pattern 2:4 --axis rows", "axis is 'rows'"),
        ("--pattern channel", "nothing says how many units are kept"),
        ("--pattern channel --k 17", "the kept units of layer 'conv3'"),
        ("--pattern 2:4 --share 2 --bits 3", "quantized weights have a mask for each output channel"),
        ("--pattern channel --density .5 --bits 3", "couples the output channels"),
        ("--share 2", "nothing says how many inputs are kept"),
    ],
)
def test_sentences(options: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--layer", "conv3", *options.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_compare_takes_numbers_arrays_and_axes(layer: lb.Layer) -> None:
    unit = np.repeat([0, 1, 2, 1], 2)
    found = lb.compare(layer, k=[1, 2], pattern=[unit, "channel", "2:4"], share=3, axis="in_channels", **OPTIONS)
    grids = [solution.problem.label for solution in found.solutions]
    rows = " refit, one mask for 3 rows"
    assert grids == [
        f"pruning units (3 given) k=1 of 3{rows}",
        f"pruning units (3 given) k=2 of 3{rows}",
        f"pruning channel k=1 of 4{rows}",
        f"pruning channel k=2 of 4{rows}",
        f"pruning 2:4@in_channels{rows}",
    ]
    assert [s.sets for s in found.solutions] == [[[0, 1, 2], [3, 4]]] * 5
    methods = {record.method for record in found.records}
    assert {"certified interval", "magnitude", "obs"} <= methods
    assert all(record.excess_percent is not None and record.excess_percent >= 0 for record in found.records)
    (one,) = lb.compare(layer, k=1, pattern=unit, methods=[], **OPTIONS).solutions
    assert one.sets == [[0, 1, 2, 3, 4]]
    with pytest.raises(InputError, match="axis is for N:M patterns, and there is none"):
        lb.compare(layer, density=0.5, axis="flat")
    with pytest.raises(InputError, match="leave out share, or joint=True"):
        lb.compare(layer, bits=2, density=0.5, share=2, joint=True)
    with pytest.raises(InputError, match="needs a density; pass the kept fraction of the units, or k"):
        lb.compare(layer, pattern="channel")


def test_storage_of_shared_masks(layer: lb.Layer) -> None:
    alone = lb.pruning_problem(layer, pattern="2:4")
    for share, sets in ((1, 5), (2, 3), (3, 2), ("all", 1), (9, 1)):
        problem = lb.pruning_problem(layer, pattern="2:4", share=share)
        assert problem.storage("bitmap") - problem.storage() == pytest.approx(
            (alone.storage("bitmap") - alone.storage()) * sets / 5
        )
    channel = lb.pruning_problem(layer, k=2, pattern="channel")
    assert channel.storage("bitmap") == pytest.approx(8 + 4 / (8 * 5))


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ({"pattern": "2:4", "share": "all"}, {"pattern": "2:4"}, True),
        ({"pattern": "2:4"}, {"pattern": "2:4", "share": "all"}, False),
        ({"pattern": "2:4", "share": 4}, {"pattern": "2:4", "share": 2}, True),
        ({"pattern": "2:4", "share": 4}, {"pattern": "2:4", "share": 3}, False),
        ({"pattern": "2:4", "share": 9}, {"pattern": "2:4", "share": 3}, True),  # more than there are is all
        ({"pattern": "2:4", "share": "all"}, {"pattern": "2:4", "share": 9}, True),
        ({"pattern": "channel", "k": 2}, {"pattern": "column", "k": 4}, True),
        ({"pattern": "channel", "k": 2}, {"pattern": "column", "k": 3}, False),
        ({"pattern": "channel", "k": 2}, {"k": 4}, True),
        ({"k": 4}, {"pattern": "column", "k": 4}, False),
        ({"pattern": "channel", "k": 2, "refit": False}, {"pattern": "channel", "k": 3}, True),
        ({"pattern": "channel", "k": 2}, {"pattern": "channel", "k": 3, "refit": False}, False),
        ({"pattern": "channel", "k": 2}, {"pattern": "position", "k": 2}, False),
        ({"pattern": "transposable:2:4"}, {"pattern": "2:4"}, True),
        ({"pattern": "transposable:2:4"}, {"k": 4}, True),
        ({"pattern": "2:4"}, {"pattern": "transposable:2:4"}, False),
        ({"pattern": "transposable:2:4"}, {"pattern": "transposable:2:4"}, False),  # known, but of no use
        ({"pattern": "transposable:2:4", "refit": False}, {"pattern": "2:4", "refit": False}, True),
    ],
)
def test_inclusions(layer: lb.Layer, inner: dict[str, Any], outer: dict[str, Any], expected: bool) -> None:
    small, large = lb.pruning_problem(layer, **inner), lb.pruning_problem(layer, **outer)
    assert contains(large.parts, small.parts) is expected
    if expected:
        weights = small.project(layer.matrix, range(5))
        assert lb.evaluate(large, weights).feasible.all()


def test_inclusions_do_not_ask_for_what_is_not_known() -> None:
    structure = parse_pattern("2:4").structure((4,), 4)
    assert not contains(None, Parts(None, structure, False))


def contender(problem: Any, bounds: list[tuple[float, float]]) -> Contender[Any]:
    found = Contender.start(problem, list(range(problem.layer.out_features)))
    for index, (low, high) in enumerate(bounds):
        found.merge(index, low, high, None)
    return found


def test_verdicts_are_about_what_neither_contender_divides() -> None:
    layer = layer_of(4, (4,))
    pairs = contender(lb.pruning_problem(layer, pattern="2:4", share=2), [(1.0, 2.0), (5.0, 6.0)])
    single = contender(lb.pruning_problem(layer, pattern="2:4"), [(1.0, 1.5), (1.5, 2.0), (1.0, 2.0), (1.0, 2.0)])
    match = Match((pairs, single))
    assert match.units == [[0, 1], [2, 3]]
    np.testing.assert_allclose(match.bounds(0), [[1.0, 2.0], [5.0, 6.0]], rtol=0)
    np.testing.assert_allclose(match.bounds(1), [[2.5, 3.5], [2.0, 4.0]], rtol=1e-15)
    # Sums are rounded outward; single intervals are as they are.
    assert match.bounds(1)[0, 0] < 2.5 < 3.5 < match.bounds(1)[0, 1]
    assert [str(v) for v in match.verdicts] == ["quantization", "pruning"] and match.open_units() == []
    whole = contender(lb.pruning_problem(layer, pattern="2:4", share="all"), [(6.0, 8.0)])
    assert Match((whole, pairs)).units == [[0, 1, 2, 3]] and Match((whole, pairs)).open_units() == [0]


def test_bounds_are_carried_over_sets(layer: lb.Layer) -> None:
    shared = lb.pruning_problem(layer, k=2, pattern="channel")
    alone = lb.pruning_problem(layer, k=4)
    inner, outer = contender(shared, []), contender(alone, [])
    best, rows = lb.solve(shared, **OPTIONS), lb.solve(alone, **OPTIONS)
    inner.absorb([0], best)
    Inclusion(inner, outer, range(5)).carry()
    # The weights of the set are allowed in each row alone, with their own error there.
    assert outer.has_weights.all() and np.all(outer.bounds[:, 1] >= rows.lower_bound)
    errors = lb.evaluate(alone, best.weights).error
    np.testing.assert_allclose(outer.bounds[:, 1], errors, rtol=1e-12)
    assert np.all(outer.bounds[:, 1] >= errors * (1 - 1e-15))
    fresh = contender(shared, [])
    outer.absorb(list(range(5)), rows)
    Inclusion(fresh, outer, range(5)).carry()
    assert fresh.bounds[0, 0] == pytest.approx(rows.lower_bound.sum()) and np.isinf(fresh.bounds[0, 1])
    assert fresh.bounds[0, 0] <= best.upper_bound[0]


def test_contest_of_shared_and_single_masks_against_brute_force(tmp_path: Path) -> None:
    layer = layer_of(2, (4, 2), seed=6)
    contenders = ["channel+k=2", "2:4", "2:4+share=all", "column+.5", 2]
    found = lb.contest(layer, contenders, mask="none", checkpoint=tmp_path, **OPTIONS)
    names = {entrant.name: entrant for entrant in found.entrants}
    assert set(names) == {
        "pruned to channel at k=2", "pruned to 2:4", "pruned to 2:4, shared by all rows",
        "pruned to column at density 0.5", "INT2",
    }  # fmt: skip
    for name, kept in (("pruned to channel at k=2", {"pattern": "channel", "k": 2}),
                       ("pruned to column at density 0.5", {"pattern": "column", "k": 4}),
                       ("pruned to 2:4, shared by all rows", {"pattern": "2:4", "share": "all"})):  # fmt: skip
        optimum = brute_force(lb.pruning_problem(layer, **kept))
        low, high = names[name].bounds[0]
        assert names[name].sets == [[0, 1]]
        assert low <= optimum * (1 + 1e-9) and optimum <= high * (1 + 1e-9)
    order = [entrant.name for entrant in found.entrants]
    first, second = order.index("pruned to 2:4"), order.index("INT2")
    assert found.units(first, second) == [[0], [1]] and len(found.ranks(first, second)) == 2
    third = order.index("pruned to 2:4, shared by all rows")
    assert found.units(first, third) == [[0, 1]] and found.count(first, third).total() == 1
    pair = (min(first, third), max(first, third))
    assert "in 1 set of channels" in found.statement([pair]) or "in 0 sets of channels" in found.statement([pair])
    record = json.loads(json.dumps(found.to_dict()))
    entry = next(c for c in record["contenders"] if c["name"] == "pruned to 2:4, shared by all rows")
    assert [c["rows"] for c in entry["channels"]] == [[0, 1]] and entry["channels"][0]["channel"] is None
    again = lb.contest(layer, contenders, mask="none", checkpoint=tmp_path, time_limit=0.0, jobs=1)
    for one, other in zip(found.entrants, again.entrants, strict=True):
        np.testing.assert_allclose(one.bounds, other.bounds)


def test_versus_with_structured_pruning(capsys: pytest.CaptureFixture[str]) -> None:
    layer = layer_of(3, (4, 2), seed=8)
    found = lb.versus(layer, (4, 8), pattern="channel", **OPTIONS)
    assert found.sets == [[0, 1, 2]] and [len(level.verdicts) for level in found.levels] == [1, 1]
    assert [level.kept for level in found.levels] == [1, 2]
    record = json.loads(json.dumps(found.to_dict()))
    assert record["compressions"][0]["channels"][0]["rows"] == [0, 1, 2]
    shares = lb.versus(layer, (4,), pattern="N:16", share=2, **OPTIONS)
    assert shares.sets == [[0, 1], [2]]
    sampled = versus_layers(
        [layer_of(8, (4,))], (4,), rules=Rules(pattern="column", share=3, jobs=1), sample=2, time_limit=0
    )
    assert sampled[0].sets == [[0, 1, 2], [6, 7]] and sampled[0].sampled
    free = lb.versus(layer, (2,), scale="free", granularity="tensor", time_limit=0.5, jobs=1)
    assert free.sets == [[0, 1, 2]] and len(free.levels[0].quantization) == 1
    assert main(["versus", "--layer", "conv3", "--bits", "8", "--pattern", "channel", "--time-limit", "0"]) == 0
    assert "sets of channels Q" in capsys.readouterr().out


def test_ragged_units_count_by_what_the_largest_hold() -> None:
    layer = layer_of(2, (7,))
    contest = Contest(layer, [8], None, Rules(pattern="head:3", jobs=1))
    # Three heads of 3, 3 and 1 inputs: one of 3 takes 16 · 3/7 bits, two 16 · 6/7, more than eight.
    assert contest.pairs[0].pruning.problem.kept == 1


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["channel+.5", "channel+share=x"], "cannot be read at 'share=x'"),
        (["channel+k=2", "channel+k=2+.5"], "two of one kind"),
        (["2:4+share=2", "4+2:4+share=2"], "leave out share"),
        (["channel", 2], "nothing says how many units"),
        (["4+channel+.5", 2], "couples the output channels"),
    ],
)
def test_contenders_that_are_none(layer: lb.Layer, texts: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        lb.contest(layer, texts, time_limit=0.0)
    assert "\n" not in str(caught.value)


def test_contenders_with_a_metric_are_refused() -> None:
    """Their errors are in other units."""
    layer = layer_of(3, (4,))
    metric = np.eye(3) + 0.5
    weighted = lb.pruning_problem(layer, k=2, pattern="filter", output_metric=metric)
    with pytest.raises(InputError, match="counts errors by a metric"):
        lb.contest(layer, [weighted, 2], time_limit=0.0)
    plain = lb.pruning_problem(layer, k=2, pattern="filter")
    kept = lb.solve(plain, **OPTIONS)
    assert (
        kept.kept_units == [np.flatnonzero(np.abs(kept.weights).sum(axis=1)).tolist()] and len(kept.kept_units[0]) == 2
    )
    found = lb.contest(layer, [plain, 2], time_limit=1.0, jobs=1)
    assert sorted(len(entrant.sets) for entrant in found.entrants) == [1, 3]


def test_orders_refuse_masks_that_rows_share(layer: lb.Layer) -> None:
    with pytest.raises(InputError, match="couples the output channels"):
        lb.order_gap(layer, 4, density=0.5, pattern="channel")


def test_joint_problems_take_an_axis() -> None:
    layer = layer_of(2, (4, 2))
    along = lb.joint_problem(layer, 2, pattern="2:4", axis="in_channels")
    assert "2:4@in_channels" in along.label
    assert along.fingerprint() == lb.joint_problem(layer, 2, pattern="2:4@in_channels").fingerprint()
    assert along.fingerprint() != lb.joint_problem(layer, 2, pattern="2:4").fingerprint()


def test_definitions_at_the_edges() -> None:
    """What docs/patterns.md says of ragged units and sets, dead inputs and weights without a kernel."""
    # Rows that V does not divide, in two groups: none is bound across groups.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40, 4))
    grouped = lb.Layer(rng.normal(size=(6, 4)), np.einsum("gni,gnj->gij", x, x) / 40)
    assert lb.pruning_problem(grouped, k=1, pattern="column", share=2).sets(range(6)) == [[0, 1], [2], [3, 4], [5]]
    assert lb.pruning_problem(grouped, k=1, pattern="column").sets(range(6)) == [[0, 1, 2], [3, 4, 5]]
    # A last head of fewer inputs is a head.
    ragged = lb.pruning_problem(layer_of(2, (7,)), density=0.5, pattern="head:3")
    assert ragged.kept == 1 and ragged.structure.unit.tolist() == [0, 0, 0, 1, 1, 1, 2]
    # Dead units count among those there are, and cost nothing: with two of three kept, one of them dead, both live
    # ones stay.
    dead = layer_of(2, (3, 2), dead=(0, 1))
    solution = lb.solve(lb.pruning_problem(dead, k=2, pattern="channel"), **OPTIONS)
    assert solution.upper_bound[0] == 0.0 and solution.kept_units == [[1, 2]]
    # A unit of which one input is dead is kept for its other one.
    partly = layer_of(2, (3, 2), dead=(0,))
    solution = lb.solve(lb.pruning_problem(partly, k=3, pattern="channel"), **OPTIONS)
    assert solution.upper_bound[0] == 0.0 and np.all(solution.weights[:, 0, 0] == 0.0)
    # Without a kernel in its shape a weight has no positions, and its channels are single inputs.
    flat = layer_of(2, (8,))
    assert lb.pruning_problem(flat, k=3, pattern="channel").structure.unit.tolist() == list(range(8))
    with pytest.raises(InputError, match="no kernel"):
        lb.pruning_problem(flat, k=3, pattern="position")
    shaped = layer_of(2, (4, 2))
    units = lb.pruning_problem(shaped, k=2, pattern="channel").structure.unit
    assert units.tolist() == lb.pruning_problem(flat, k=2, pattern="head:2").structure.unit.tolist()
