"""Orders of pruning and quantization: against enumeration, with ties, limits, odd layers, and from the command line."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.certify.kept_inputs import error_interval, lower_bound_on_kept
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.kernels import exact
from layerbounds.orders import run as running
from layerbounds.orders.definitions import ORDERS, Kind, Target
from layerbounds.orders.kept import kept_inputs, rows_of
from layerbounds.orders.others import FOUND, NONE, UNKNOWN, other_levels, other_supports
from layerbounds.orders.picture import plot_orders
from layerbounds.orders.tables import best_orders, order_tables

PAIRS = ["magnitude+rtn", "exact+gptq:act_order=true"]
LIMITS = {"time_limit": 5.0, "jobs": 1}


def toy(n: int = 5, out: int = 2, seed: int = 0, *, compressed: bool = False, dead: bool = False) -> lb.Layer:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, n)) + rng.normal(size=(30, 1))
    if dead:
        x[:, 1] = 0.0
    seen = x + 0.3 * rng.normal(size=x.shape) * (x != 0) if compressed else None
    return lb.Layer.from_activations(rng.normal(size=(out, n)), x, "toy", compressed_inputs=seen)


def error(layer: lb.Layer, row: int, v: np.ndarray, towards: np.ndarray | None = None) -> float:
    gram = layer.channel_gram(row)
    e = v - (layer.target[row] if towards is None else towards)
    return float(e @ gram @ e) + (layer.constant[row] if towards is None else 0.0)


def masks(problem: lb.PruningProblem) -> list[np.ndarray]:
    n, structure = problem.layer.in_features, problem.structure
    every = (np.array(m, dtype=float) for m in itertools.product((0, 1), repeat=n))
    return [m > 0 for m in every if not structure.excess(m[None])[0]]


def refitted(layer: lb.Layer, row: int, mask: np.ndarray) -> np.ndarray:
    s, gram = np.flatnonzero(mask), layer.channel_gram(row)
    v = np.zeros(len(mask))
    if len(s):
        v[s] = np.linalg.lstsq(gram[np.ix_(s, s)], gram[s] @ layer.target[row], rcond=None)[0]
    return v


def stage_by_enumeration(
    layer: lb.Layer, row: int, stage, v: np.ndarray, mask, pruned: lb.PruningProblem, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """All weights of a stage, the best one by its own target."""
    towards = v if stage.target == Target.PREVIOUS else None
    if stage.kind == Kind.QUANTIZE:
        free = np.ones(len(v), dtype=bool) if mask is None else mask
        rows = [values.tolist() if kept else [0.0] for values, kept in zip(levels, free, strict=True)]
        best = min((np.array(p) for p in itertools.product(*rows)), key=lambda p: error(layer, row, p, towards))
        return best, mask
    if stage.kind == Kind.PRUNE_REFIT:
        chosen = min(masks(pruned), key=lambda m: error(layer, row, refitted(layer, row, m), towards))
        return refitted(layer, row, chosen), chosen
    chosen = min(masks(pruned), key=lambda m: error(layer, row, np.where(m, v, 0.0), towards))
    return np.where(chosen, v, 0.0), chosen & (v != 0)


def order_by_enumeration(layer: lb.Layer, row: int, name: str, problem: lb.JointProblem) -> float:
    v, mask = layer.matrix[row], None
    pruned = lb.PruningProblem(layer, problem.pattern, problem.kept, True)
    for stage in ORDERS[name].stages:
        v, mask = stage_by_enumeration(layer, row, stage, v, mask, pruned, problem.grid.levels(row))
    return error(layer, row, v)


def joint_by_enumeration(problem: lb.JointProblem, row: int) -> float:
    return min(error(problem.layer, row, p) for p, _, _ in problem.allowed(row).pieces())


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ({"bits": 2}, {"k": 3}),
        ({"bits": 2, "symmetric": False, "granularity": 3}, {"pattern": "1:2"}),
        ({"codebook": "ternary"}, {"k": 4, "pattern": "block:2"}),
        ({"bits": 1}, {"k": 2}),
    ],
)
def test_orders_agree_with_enumeration(how, rule):
    layer = toy(compressed="codebook" in how)
    gap = lb.order_gap(layer, **how, **rule, jobs=1)
    problem = lb.joint_problem(layer, **how, **rule)
    for row in range(layer.out_features):
        best = joint_by_enumeration(problem, row)
        assert gap.joint[row, 0] <= best * (1 + 1e-9) and gap.joint[row, 1] == pytest.approx(best, rel=1e-6)
        for name in ORDERS:
            reached = order_by_enumeration(layer, row, name, problem)
            assert gap.settled[name][row]
            assert gap.intervals[name][row] == pytest.approx([reached, reached], rel=3e-6), name
            low, high = gap.ratio[name][row]
            assert 1 <= low <= reached / best * (1 + 1e-9) and high >= reached / best * (1 - 1e-9)
            weights = gap.weights[name][row]
            assert problem.allowed(row).violation(weights) == 0
            assert error(layer, row, weights) == pytest.approx(reached, rel=1e-6)
    assert problem.allowed(0).violation(gap.weights["joint"][0]) == 0


def test_scales_of_what_is_kept():
    layer = toy(6, seed=3)
    gap = lb.order_gap(layer, 2, k=3, scale_rule="kept", jobs=1, pairs=["magnitude+rtn"])
    for name, weights in (("PQ", gap.stages["PQ"][0].weights), ("MQ", layer.matrix), ("QPQ", layer.matrix)):
        for row in range(2):
            kept = np.flatnonzero(gap.stages[name][-2].weights[row])
            own = lb.uniform_grid(weights[row, kept][None], 2).scale[0]
            assert gap.scale[name][row] == pytest.approx(own)
            grid = lb.Grid(np.arange(-2, 2), gap.scale[name], np.zeros(()), 6)
            assert gap.joint_at[name][row, 1] == pytest.approx(
                joint_by_enumeration(lb.joint_problem(layer, grid=grid, k=3), row), rel=1e-6
            )
    for name, interval in gap.intervals.items():
        assert np.all(gap.joint_at[name][:, 1] <= interval[:, 1] * (1 + 1e-12))
        assert np.all(gap.joint[:, 1] <= gap.joint_at[name][:, 1])
    assert gap.scale["QP"] == pytest.approx(lb.uniform_grid(layer.weight, 2).scale)


def test_heuristic_stages_and_what_exact_ones_add():
    layer = toy(6, seed=1)
    gap = lb.order_gap(
        layer, 3, k=3, orders=["MQb", "QP"], pairs=["magnitude+rtn", "exact+gptq:act_order=true"], jobs=1
    )
    assert list(gap.intervals) == [
        "MQb", "QP", "MQb magnitude+rtn", "QP magnitude+rtn", "MQb exact+gptq act_order=true",
        "QP exact+gptq act_order=true",
    ]  # fmt: skip
    grid = lb.uniform_grid(layer.weight, 3)
    for row in range(2):
        largest = np.argsort(-np.abs(layer.matrix[row]))[:3]
        pruned = np.zeros(6)
        pruned[largest] = layer.matrix[row, largest]
        blind = np.where(pruned != 0, grid.nearest(pruned[None], [row])[0], 0.0)
        assert gap.weights["MQb magnitude+rtn"][row] == pytest.approx(blind)
        low, high = gap.intervals["MQb magnitude+rtn"][row]
        assert low == pytest.approx(high, rel=1e-12) and high == pytest.approx(error(layer, row, blind))
    assert gap.settled["QP magnitude+rtn"].all()
    assert not {"QP magnitude+rtn", "open"} & set(gap.decide("QP exact+gptq act_order=true", "QP"))


@pytest.mark.parametrize("bits", [2, 3])
def test_uncorrelated_inputs_have_no_order_gap_but_that_of_the_mask(bits):
    """With H = I quantizing and then choosing the mask for the dense output is optimal; so is magnitude first."""
    layer = lb.Layer(np.random.default_rng(bits).normal(size=(2, 7)), np.eye(7))
    gap = lb.order_gap(layer, bits, k=3, orders=["MQ", "MQb", "QP"], pairs=["magnitude+rtn"], look=False, jobs=1)
    for name in ("MQ", "MQb", "QP", "MQb magnitude+rtn"):
        assert gap.decide(name, "joint", strict=False) == ["equal", "equal"], name
    # A mask by the magnitude of quantized weights cannot tell weights of one level apart.
    first, last = gap.intervals["MQb magnitude+rtn"], gap.intervals["QP magnitude+rtn"]
    assert np.all(first[:, 0] <= last[:, 1] * (1 + 1e-9))


def second_best_support(problem: lb.PruningProblem, row: int) -> tuple[float, float]:
    """The least error and that of another support, keeping fewer inputs only where that changes the weights."""
    layer, best = problem.layer, {}
    for mask in masks(problem):
        v = refitted(layer, row, mask) if problem.refit else np.where(mask, layer.matrix[row], 0.0)
        units = problem.structure.kept_units((mask if problem.refit else v != 0).astype(float)[None])[0]
        key = units.tobytes()
        best[key] = min(best.get(key, np.inf), error(layer, row, v))
    values = sorted(best.values())
    return values[0], values[1]


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("rule", [{"k": 2}, {"pattern": "1:2"}, {"k": 4, "pattern": "block:2"}])
def test_other_supports(rule, refit):
    for seed in range(3):
        layer = toy(6, seed=seed, out=3)
        problem = lb.pruning_problem(layer, refit=refit, **rule)
        found = other_supports(problem, lb.solve(problem, jobs=1), LIMITS)
        for row in range(3):
            first, second = second_best_support(problem, row)
            assert second > first * 1.0001
            assert found[row] == NONE


def test_twin_inputs_give_another_support():
    layer = toy(6, out=1)
    gram = layer.gram[0].copy()
    gram[5], gram[:, 5] = gram[0], gram[:, 0]
    gram[5, 5] = gram[0, 0]
    weight = np.array([[2.0, 0.3, 0.2, 0.1, 0.1, 2.0]])
    twins = lb.Layer(weight, gram)
    for refit in (True, False):
        problem = lb.pruning_problem(twins, k=1, refit=refit)
        assert other_supports(problem, lb.solve(problem, jobs=1), LIMITS) == [FOUND]
    gap = lb.order_gap(twins, 2, k=1, orders=["PQ", "QP"], jobs=1)
    assert not gap.settled["PQ"][0] and gap.winner == ["open"]
    assert gap.stages["PQ"][0].others == [FOUND]


def test_masks_that_keep_less_than_they_may():
    """Where keeping more hurts, supports that hold more are looked through as well."""
    gram = np.eye(4) + 0.99 * (np.ones((4, 4)) - np.eye(4))
    layer = lb.Layer(np.array([[1.0, -1.0, 1.0, -1.001]]), gram, target=np.array([[1.0, 0.0, 0.0, 0.0]]))
    problem = lb.pruning_problem(layer, k=3, refit=False)
    solution = lb.solve(problem, jobs=1)
    assert np.count_nonzero(solution.weights) == 1
    assert other_supports(problem, solution, LIMITS) == [NONE]
    first, second = second_best_support(problem, 0)
    assert second > first


@pytest.mark.parametrize(
    "how", [{"bits": 2}, {"bits": 3, "symmetric": False}, {"codebook": "ternary"}, {"codebook": "fp4"}, {"bits": 1}]
)
def test_other_levels(how):
    for seed in range(2):
        layer = toy(4, seed=seed, out=2, compressed=seed == 1)
        problem = lb.quantization_problem(layer, **how)
        found = other_levels(problem, lb.solve(problem, jobs=1), LIMITS)
        for row in range(2):
            points = itertools.product(*problem.grid.levels(row).tolist())
            first, second = sorted(error(layer, row, np.array(p)) for p in points)[:2]
            assert found[row] == (NONE if second > first * 1.0001 else found[row])
            assert second > first * 1.0001


@pytest.mark.parametrize("codebook", [None, "ternary"])
def test_a_weight_between_two_levels(codebook):
    """0.5 is as near to 0 as to 1: another quantization is as good."""
    layer = lb.Layer(np.array([[0.5, 1.0, -1.0]]), np.eye(3))
    grid = lb.Grid(np.array([-1.0, 0.0, 1.0]), np.ones(1), np.zeros(()), 3, uniform=codebook is None)
    problem = lb.quantization_problem(layer, grid=grid)
    assert other_levels(problem, lb.solve(problem, jobs=1), LIMITS) == [FOUND]
    near = lb.Layer(np.array([[0.5001, 1.0, -1.0]]), np.eye(3))
    problem = lb.quantization_problem(near, grid=grid)
    assert other_levels(problem, lb.solve(problem, jobs=1), LIMITS) == [NONE]


def test_stages_that_are_not_proven_settle_nothing():
    layer = toy(24, out=1, seed=5)
    gap = lb.order_gap(layer, 3, k=12, node_limit=1, jobs=1, orders=["PQ", "MQb", "QP"])
    unproven = [name for name in gap.intervals if not gap.stages[name][0].proven[0]]
    assert unproven
    for name in unproven:
        assert not gap.settled[name][0] and gap.stages[name][0].others == [UNKNOWN]
    assert gap.winner == ["open"]
    assert gap.leader[0] in ("PQ", "QP", "open", "equal")
    blind = gap.stages["MQb"][1]
    found = error(layer, 0, blind.weights[0])
    low, high = gap.intervals["MQb"][0]
    assert low <= found * (1 + 1e-12) and found <= high * (1 + 1e-12)
    if not blind.proven[0]:
        assert high > found


def test_without_a_look_nothing_is_settled():
    gap = lb.order_gap(toy(), 2, k=2, orders=["PQ", "QP"], look=False, jobs=1)
    assert not any(settled.any() for settled in gap.settled.values())
    assert gap.winner == ["open", "open"]
    assert "open" not in gap.leader or gap.leader


def test_the_bound_on_kept_inputs_charges_what_rounding_or_repair_left():
    """However wrong target, constant and Gram matrix of the smaller layer are, its bound never exceeds f."""
    rng = np.random.default_rng(0)
    for seed in range(8):
        layer = toy(5, out=1, seed=seed, compressed=seed % 2 == 1)
        mask = np.array([True, False, True, True, False])
        right = kept_inputs(layer, [0], mask[None])
        wrong = lb.Layer(
            right.matrix,
            right.gram * (1 + 0.1 * (seed > 2)),
            target=right.target + 0.2 * rng.normal(size=5) * mask * (seed > 4),
            constant=right.constant + (seed > 5),
        )
        levels = np.where(mask[:, None], lb.uniform_grid(layer.weight, 2).levels(0), 0.0)
        points = [np.array(p) for p in itertools.product(*(np.unique(row).tolist() for row in levels))]
        least = min(exact.quadratic_form(layer.gram[0], layer.target[0], p) for p in points)
        least += Fraction(float(layer.constant[0]))
        for smaller in (right, wrong):
            own = min(
                exact.quadratic_form(smaller.gram[0], smaller.target[0], p) + Fraction(float(smaller.constant[0]))
                for p in points
            )
            bound = lower_bound_on_kept(layer, 0, smaller, 0, exact.float_below(own), levels)
            assert Fraction(bound) <= least
            if smaller is right:
                assert bound == pytest.approx(float(least), rel=1e-9)


def test_errors_are_enclosed():
    layer = toy(4, compressed=True)
    v = np.array([0.5, 0.0, -1.0, 2.0])
    low, high = error_interval(layer, 1, v)
    value = exact.quadratic_form(layer.gram[0], layer.target[1], v) + Fraction(float(layer.constant[1]))
    assert Fraction(low) <= value <= Fraction(high) and high - low <= 1e-12 * high


def test_odd_layers():
    rng = np.random.default_rng(2)
    grouped = lb.Layer(rng.normal(size=(4, 3)), np.stack([np.eye(3) + 0.5, np.eye(3)]), "grouped")
    gap = lb.order_gap(grouped, 2, k=2, channels=[3, 0], jobs=1)
    problem = lb.joint_problem(grouped, 2, k=2)
    assert gap.channels == [3, 0]
    for i, row in enumerate(gap.channels):
        assert gap.joint[i, 1] == pytest.approx(joint_by_enumeration(problem, row), rel=1e-6)
        assert gap.intervals["QP"][i, 1] == pytest.approx(order_by_enumeration(grouped, row, "QP", problem), rel=1e-6)
    dead = toy(5, dead=True)
    gap = lb.order_gap(dead, 2, k=2, jobs=1, scale_rule="kept")
    assert all(np.all(weights[:, 1] == 0) for name, weights in gap.weights.items())
    for k in (0, 5):
        gap = lb.order_gap(toy(5), 2, k=k, jobs=1, orders=["PQ", "QP"], scale_rule="kept")
        assert gap.decide("PQ", "joint") == ["equal", "equal"]
    one = lb.Layer(np.array([[0.7]]), np.array([[2.0]]))
    assert lb.order_gap(one, 2, k=1, jobs=1).winner == ["equal"]
    nothing = lb.Layer(np.zeros((1, 3)), np.eye(3))
    assert lb.order_gap(nothing, 2, k=1, jobs=1).winner in (["equal"], ["open"])
    everything_dead = lb.Layer(np.ones((1, 3)), np.zeros((3, 3)))
    assert lb.order_gap(everything_dead, 2, k=1, jobs=1).winner == ["equal"]
    singular = lb.Layer(rng.normal(size=(1, 4)), np.ones((4, 4)))
    gap = lb.order_gap(singular, 2, k=2, jobs=1)
    assert gap.joint[0, 0] <= gap.joint[0, 1]
    assert lb.order_gap(toy(), 2, k=2, bias="refit", jobs=1, orders=["PQ"]).contestants == ("PQ", "QP")


def test_rows_of_a_layer_keep_their_errors():
    layer = toy(4, out=3, compressed=True)
    rows = rows_of(layer, [2, 0, 2])
    v = np.array([1.0, 0.0, 0.5, -1.0])
    assert [error(rows, i, v) for i in range(3)] == [error(layer, c, v) for c in (2, 0, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 2}, "nothing says what kept weights may be"),
        ({"bits": 2}, "nothing says how many inputs are kept"),
        ({"bits": 2, "k": 2, "orders": []}, "name at least one"),
        ({"bits": 2, "k": 2, "orders": ["PX"]}, "there is no order 'PX'"),
        ({"bits": 2, "k": 2, "orders": "PQ"}, "pass a list"),
        ({"bits": 2, "k": 2, "scale_rule": "free"}, "choose"),
        ({"bits": 2, "k": 2, "scale_rule": "kept", "granularity": "tensor"}, "one scale for each channel"),
        ({"bits": 2, "k": 2, "scale_rule": "kept", "granularity": 2}, "one scale for each channel"),
        ({"bits": 2, "k": 2, "scale_rule": "kept", "scale": [1.0, 1.0]}, "leave out scale"),
        ({"bits": 2, "k": 2, "pairs": ["rtn"]}, "PRUNING\\+QUANTIZATION"),
        ({"bits": 2, "k": 2, "pairs": ["wanda+"]}, "PRUNING\\+QUANTIZATION"),
        ({"bits": 2, "k": 2, "pairs": [3]}, "pass a text"),
        ({"bits": 2, "k": 2, "pairs": ["wanda+nothing"]}, "there is no heuristic"),
        ({"bits": 2, "k": 2, "time_limit": -1}, "time_limit"),
        ({"bits": 2, "k": 2, "channels": [7]}, "distinct output channels"),
        ({"bits": 2, "k": 2, "look": 1}, "look"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        lb.order_gap(toy(), **arguments)


def test_methods_that_cannot_do_a_stage_are_refused():
    with pytest.raises(UnsupportedProblemError, match="cannot treat the stage"):
        lb.order_gap(toy(), 2, k=2, pairs=["rtn+magnitude"], jobs=1, orders=["PQ"])


def test_results_are_records(tmp_path):
    gap = lb.order_gap(toy(), 2, k=2, jobs=1, pairs=["wanda+rtn"])
    record = gap.to_dict()
    json.dumps(record, allow_nan=False)
    first = record["channels"][0]
    assert set(first["orders"]) == set(gap.intervals)
    assert first["orders"]["PQ"]["stages"][0]["others_within_1e-6"] == NONE
    assert first["winner"] == gap.winner[0]
    for name, text in gap.definitions.items():
        assert text, name
    assert set(gap.definitions) == {"joint", "scale", *gap.intervals}
    low, high = gap.totals("PQ")
    assert low <= gap.intervals["PQ"][:, 1].sum() * (1 + 1e-12) and high >= gap.intervals["PQ"][:, 0].sum()
    with pytest.raises(lb.LayerboundsError, match="there is no order"):
        gap.decide("PQ", "XY")
    best = best_orders(gap)
    assert len(best) == 2 and set(best) <= {*gap.intervals, "open"}
    assert len(order_tables(gap)) == 2
    pytest.importorskip("matplotlib")
    gap.plot(tmp_path / "one.svg")
    plot_orders([gap, gap], tmp_path / "two.png")
    assert (tmp_path / "one.svg").stat().st_size > 1000 and (tmp_path / "two.png").exists()
    with pytest.raises(InputError, match="choose a name that ends in"):
        gap.plot(tmp_path / "one.txt")


def test_ctrl_c_keeps_what_is_finished(monkeypatch):
    real, calls = running.solve, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "solve", interrupted)
    gap = lb.order_gap(toy(), 2, k=2, jobs=1)
    assert gap.interrupted and len(calls) == 1 and set(gap.intervals) == set(ORDERS)
    assert np.all(gap.joint[:, 0] >= 0) and np.all(np.isfinite(gap.joint[:, 1]))
    assert np.all(gap.joint[:, 1] <= gap.intervals["PQ"][:, 1] * (1 + 1e-12))
    monkeypatch.setattr(running, "solve", real)
    done = []

    def stop(finished: int, steps: int) -> None:
        done.append((finished, steps))
        if finished == 2:
            raise KeyboardInterrupt

    gap = lb.order_gap(toy(), 2, k=2, jobs=1, progress=stop)
    assert gap.interrupted and list(gap.intervals) == ["PQ", "MQ"] and done == [(0, 6), (1, 6), (2, 6)]
    assert gap.winner == ["open", "open"]
    json.dumps(gap.to_dict(), allow_nan=False)
    order_tables(gap)

    def at_once(finished: int, steps: int) -> None:
        raise KeyboardInterrupt

    gap = lb.order_gap(toy(), 2, k=2, jobs=1, progress=at_once)
    assert gap.interrupted and not gap.intervals and order_tables(gap) == []


def test_joint_over_all_scales():
    layer = toy(4, out=1)
    gap = lb.order_gap(layer, 2, k=2, scale_rule="kept", all_scales=True, jobs=1)
    assert gap.joint_over_scales is not None
    low, high = gap.joint_over_scales[0]
    assert 0 < low <= high <= gap.joint[0, 1] and high <= 1.02 * low
    assert gap.to_dict()["channels"][0]["joint_over_scales"]["lower_bound"] == low
    assert "joint over all scales" in gap.definitions and len(order_tables(gap)) == 2
    with pytest.raises(InputError, match="no zero points"):
        lb.order_gap(layer, 2, k=2, symmetric=False, all_scales=True)


def test_command(tmp_path, capsys, monkeypatch):
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, {"conv3": toy()})
    out = tmp_path / "out.json"
    arguments = ["order", "--layer", "conv3", "--input", str(path), "--bits", "2", "--density", "0.5", "--jobs", "1"]
    assert main([*arguments, "--orders", "PQ,QP", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "PQ against QP, by channel" in text and "scale: scales are fitted to the dense weights" in text
    record = json.loads(out.read_text())
    assert record["gaps"][0]["channels"][1]["channel"] == 1 and record["options"]["bits"] == "2"
    assert main([*arguments, "--orders", "QP", "--scale-rule", "dense,kept", "--pattern", "1:2,unstructured",
                 "--channels", "0", "--codebook", "ternary", "--json", "-"]) == 0  # fmt: skip
    record = json.loads(capsys.readouterr().out)
    assert len(record["gaps"]) == 8 and not record["interrupted"]
    for extra, message in (
        (["--pattern", "2:x"], "there is no pattern"),
        (["--pattern", "1:2"], "leave out --density"),
        (["--pairs", "rtn"], "PRUNING+QUANTIZATION"),
    ):
        assert main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
    assert main(["order", "--layer", "conv3", "--input", str(path), "--bits", "2"]) == 2
    assert "--density" in capsys.readouterr().err
    assert main(["order", "--layer", "conv3", "--input", str(path), "--density", ".5"]) == 2
    assert "--bits or --codebook" in capsys.readouterr().err

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "solve", interrupted)
    assert main([*arguments, "--orders", "PQ", "--json", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().out and json.loads(out.read_text())["interrupted"]
