"""Quantization against pruning: verdicts against brute force, resuming, interruption, command line."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.main import main
from layerbounds.contests import Verdict, versus_layers
from layerbounds.contests import work as work_module
from layerbounds.contests.contest import Contender, Contest, Rules
from layerbounds.contests.sample import sample_channels
from layerbounds.contests.verdict import decide, summed
from layerbounds.exceptions import CertificationError, FileFormatError, InputError


def best_quantized(layer: lb.Layer, channel: int, bits: int) -> float:
    levels = lb.uniform_grid(layer.weight, bits).levels(channel)
    points = np.array(list(itertools.product(*levels)))
    d = points - layer.matrix[channel]
    return float(np.min(np.einsum("ij,jk,ik->i", d, layer.gram[0], d)))


def best_pruned(layer: lb.Layer, channel: int, bits: int, refit: bool = True) -> float:
    n, w, gram = layer.in_features, layer.matrix[channel], layer.gram[0]
    best = math.inf
    for kept in itertools.combinations(range(n), int(bits / 16 * n)):
        s = list(kept)
        v = np.zeros(n)
        if s and refit:
            v[s] = np.linalg.lstsq(gram[np.ix_(s, s)], gram[s] @ w, rcond=None)[0]
        masks = [v] if refit else []
        if not refit:
            for size in range(len(s) + 1):
                for part in itertools.combinations(s, size):
                    u = np.zeros(n)
                    u[list(part)] = w[list(part)]
                    masks.append(u)
        best = min(best, *(float((u - w) @ gram @ (u - w)) for u in masks))
    return best


@pytest.mark.parametrize("refit", [True, False])
def test_intervals_and_verdicts_agree_with_brute_force(small_layer: lb.Layer, refit: bool) -> None:
    found = lb.versus(small_layer, (2, 3), refit=refit, channels=[0, 2, 3], time_limit=5, jobs=1)
    for level in found.levels:
        for i, channel in enumerate(found.channels):
            q, p = (
                best_quantized(small_layer, channel, level.bits),
                best_pruned(small_layer, channel, level.bits, refit),
            )
            for bounds, optimum in ((level.quantization[i], q), (level.pruning[i], p)):
                assert bounds[0] <= optimum * (1 + 1e-12) and optimum <= bounds[1] * (1 + 1e-12)
            assert level.verdicts[i] == (Verdict.QUANTIZATION if q < p else Verdict.PRUNING)
        assert level.verdict in (Verdict.QUANTIZATION, Verdict.PRUNING)
        assert "scales fixed" in level.statement() and ("refit" if refit else "mask only") in level.statement()
        assert "2-bit symmetric per channel, mse" in found.levels[0].statement()


def test_pruning_wins_on_sparse_weights_and_zero_weights_are_equal(random_gram: Callable[..., Float]) -> None:
    weight = np.zeros((2, 16))
    weight[0, [3, 9]] = 1.0, 0.37
    found = lb.versus(lb.Layer(weight, random_gram(16), "sparse"), (2,), time_limit=2, jobs=1)
    (level,) = found.levels
    assert level.verdicts == [Verdict.PRUNING, Verdict.EQUAL]
    assert level.verdict == Verdict.PRUNING  # of the sum
    assert level.kept == 2 and level.count()[Verdict.EQUAL] == 1


def test_more_kept_inputs_never_have_worse_bounds() -> None:
    layer = lb.demo_layers()["conv3"]
    found = lb.versus(layer, (8, 2, 4), channels=[1, 5], time_limit=0, jobs=1)
    assert [level.bits for level in found.levels] == [8, 2, 4]
    by_bits = {level.bits: level.pruning for level in found.levels}
    for fewer, more in ((2, 4), (4, 8)):
        assert np.all(by_bits[fewer] >= by_bits[more])
    assert all(level.verdict == Verdict.QUANTIZATION for level in found.levels if level.bits >= 4)


def test_patterns_of_equal_density(small_layer: lb.Layer, random_gram: Callable[..., Float]) -> None:
    wide = lb.Layer(np.random.default_rng(3).normal(size=(1, 32)), random_gram(32), "wide")
    found = lb.versus(wide, (2, 4), pattern="N:16", time_limit=0, jobs=1)
    assert [level.pruning_problem for level in found.levels] == ["pruning 2:16 refit", "pruning 4:16 refit"]
    assert [level.kept for level in found.levels] == [4, 8]
    blocks = lb.versus(wide, (4,), pattern="block:4", time_limit=0, jobs=1)
    assert blocks.levels[0].pruning_problem.startswith("pruning block:4")
    with pytest.raises(InputError, match="no whole number"):
        lb.versus(wide, (3,), pattern="N:8", time_limit=0)


def test_degenerate_layers(random_gram: Callable[..., Float], rng: np.random.Generator) -> None:
    gram = random_gram(4)
    gram[1] = gram[:, 1] = 0.0
    layers = {
        "dead": lb.Layer(np.ones((2, 3)), np.zeros((3, 3)), "dead"),
        "one": lb.Layer([[0.3], [0.0]], [[2.0]], "one"),
        "grouped": lb.Layer(rng.normal(size=(4, 4)), np.stack([gram, np.eye(4)]), "grouped"),
        "tiny": lb.Layer(1e-60 * rng.normal(size=(1, 4)), gram, "tiny"),
        "constant": lb.Layer(rng.normal(size=(1, 4)), gram, "constant", constant=[3.0]),
    }
    found = {c.layer: c.levels[0] for c in versus_layers(layers, (2,), time_limit=1, rules=Rules(jobs=1))}
    assert found["dead"].verdicts == [Verdict.EQUAL] * 2
    # A weight on its own is pruned at 2 bits, which keeps ⌊1/8⌋ = 0 inputs; an input of weight 0 costs nothing.
    assert found["one"].verdicts == [Verdict.QUANTIZATION, Verdict.EQUAL]
    assert Verdict.OPEN not in found["grouped"].verdicts
    assert found["tiny"].verdict == Verdict.QUANTIZATION
    assert found["constant"].quantization[0, 0] >= 3.0 and found["constant"].pruning[0, 0] >= 3.0


def test_decisions_and_sums_are_outward() -> None:
    assert decide((0.0, 1.0), (1.0, 2.0)) == Verdict.OPEN  # touching intervals decide nothing
    assert decide((0.0, 1.0), (np.nextafter(1.0, 2.0), 2.0)) == Verdict.QUANTIZATION
    assert decide((3.0, 4.0), (1.0, 2.0)) == Verdict.PRUNING
    assert decide((1.0, 1.0), (1.0, 1.0)) == Verdict.EQUAL
    low, high = summed(np.array([[0.1, 0.1], [0.2, 0.2], [0.3, np.inf]]))
    assert low < math.fsum([0.1, 0.2, 0.3]) and high == math.inf
    assert summed(np.zeros((3, 2))) == (0.0, 0.0)


def test_contradicting_intervals_are_an_error(small_layer: lb.Layer) -> None:
    contender = Contender.start(lb.quantization_problem(small_layer, 2), [0])
    contender.merge(0, 1.0, 2.0, None)
    with pytest.raises(CertificationError, match="contradict"):
        contender.merge(0, 2.5, 3.0, None)


def test_time_goes_only_to_open_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lb.demo_layers()["conv3"]
    calls: list[tuple[str, float, list[int]]] = []
    real = work_module.solve

    def spy(problem: Any, *args: Any, **options: Any) -> lb.Solution:
        calls.append((problem.label, options["time_limit"], list(options["channels"])))
        return real(problem, *args, **options)

    monkeypatch.setattr(work_module, "solve", spy)
    contest = Contest(layer, [2, 6], [0, 1], Rules(jobs=1))
    contest.round(0.0)
    assert len(calls) == 4 and all(limit == 0.0 and channels == [0, 1] for _, limit, channels in calls)
    open_before = {pair.bits: [contest.channels[i] for i in pair.open_units()] for pair in contest.pairs}
    assert open_before[6] == []
    calls.clear()
    contest.round(3.0)
    assert all(not label.startswith("6-bit") and "k=24" not in label for label, _, _ in calls)
    assert {c for _, _, channels in calls for c in channels} <= set(open_before[2])
    contest.round(2.0)  # shorter than what was done
    assert contest.completed == 3.0


def test_sum_of_disagreeing_channels_is_decided(random_gram: Callable[..., Float]) -> None:
    """Channels stop when they are decided; where they disagree, the sum needs more work on them."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(2, 8))
    weight[0] *= 0.01
    weight[0, 2] = 1.0
    layer = lb.Layer(weight, random_gram(8), "mixed")
    quantized, pruned = ([f(layer, c, 2) for c in range(2)] for f in (best_quantized, best_pruned))
    assert pruned[0] < quantized[0] and quantized[1] < pruned[1]
    contest = Contest(layer, [2], None, Rules(jobs=1))
    (pair,) = contest.pairs
    # What is known after the rounds of the channels: intervals that just do not overlap.
    for row, (better, worse) in enumerate([(pair.pruning, pair.quantization), (pair.quantization, pair.pruning)]):
        middle = 0.5 * (quantized[row] + pruned[row])
        better.merge(row, 0.0, middle, None)
        worse.merge(row, middle * (1 + 1e-9), 20.0 * max(quantized[row], pruned[row]), None)
    assert pair.open_units() == [] and contest.result().levels[0].verdict == Verdict.OPEN
    contest._settle_sum(pair, 5.0)
    expected = Verdict.QUANTIZATION if sum(quantized) < sum(pruned) else Verdict.PRUNING
    assert contest.result().levels[0].verdict == expected


def test_resume_continues_and_refuses_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lb.demo_layers()["conv3"]
    options: dict[str, Any] = {"channels": [0, 1], "jobs": 1, "checkpoint": tmp_path / "run"}
    real = work_module.solve
    count = 0

    def interrupted(*args: Any, **kwargs: Any) -> lb.Solution:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(work_module, "solve", interrupted)
    first = lb.versus(layer, (4, 6), time_limit=0, **options)
    assert first.interrupted and sum(np.isinf(v.quantization).any() for v in first.levels) == 1
    count = -10
    second = lb.versus(layer, (4, 6), time_limit=0, **options)
    assert count == -8  # only what was missing
    assert not second.interrupted and all(v.verdict == Verdict.QUANTIZATION for v in second.levels)
    for before, after in zip(first.levels, second.levels, strict=True):
        assert np.all(after.quantization[:, 0] >= before.quantization[:, 0])
        assert np.all(after.quantization[:, 1] <= before.quantization[:, 1])
    count = 10  # any further call would interrupt
    third = lb.versus(layer, (4, 6), time_limit=0, **options)
    assert [v.quantization.tolist() for v in third.levels] == [v.quantization.tolist() for v in second.levels]
    count = -10
    other = lb.versus(layer, (4, 6), time_limit=0, granularity="tensor", **options)
    assert count == -6 and not other.interrupted  # another grid is another problem
    for path in (tmp_path / "run").iterdir():
        path.write_text(path.read_text()[:-20])
    with pytest.raises(FileFormatError, match="delete it"):
        lb.versus(layer, (4, 6), time_limit=0, **options)


def test_total_time_leaves_valid_open_verdicts(small_layer: lb.Layer) -> None:
    (found,) = versus_layers([small_layer], (2, 3), total_time=1e-9, rules=Rules(jobs=1))
    assert all(level.verdict == Verdict.OPEN and np.all(np.isinf(level.pruning[:, 1])) for level in found.levels)
    assert json.loads(json.dumps(found.to_dict()))["compressions"][0]["pruning"]["upper_bound"] is None


def test_gap_for_each_channel(small_layer: lb.Layer) -> None:
    problem = lb.pruning_problem(small_layer, density=0.5)
    found = lb.solve(problem, gap=[0.0, 0.9], channels=[1, 4], jobs=1)
    assert found.status[0] == lb.Status.OPTIMAL
    assert found.gap[1] <= 0.9
    for gap in ([0.1], [0.1, 1.0], -0.1):
        with pytest.raises(InputError, match="relative gap"):
            lb.solve(problem, gap=gap, channels=[1, 4])


def test_samples_of_channels() -> None:
    assert sample_channels(64, 8) == [4, 12, 20, 28, 36, 44, 52, 60]
    assert sample_channels(5, 8) == [0, 1, 2, 3, 4]
    for out, count in itertools.product(range(1, 40), range(1, 40)):
        chosen = sample_channels(out, count)
        assert len(chosen) == min(out, count) == len(set(chosen)) and 0 <= min(chosen) <= max(chosen) < out
    with pytest.raises(InputError, match="sample"):
        sample_channels(5, 0)


@pytest.mark.parametrize(("text", "bits"), [("2:8", [2, 3, 4, 5, 6, 7, 8]), ("4", [4]), ("3, 2,6:7", [3, 2, 6, 7])])
def test_lists_of_bits(text: str, bits: list[int]) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["", "x", "8:2", "0", "9", "2,2", "2:3:4", "2-8"])
def test_bad_lists_of_bits(text: str) -> None:
    with pytest.raises(InputError, match="bits"):
        parse_bits(text)


def test_command_on_one_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, picture, table = tmp_path / "v.json", tmp_path / "v.svg", tmp_path / "v.md"
    arguments = ["versus", "--layer", "conv3", "--bits", "3,8", "--channels", "0:2", "--time-limit", "1"]
    assert main([*arguments, "--json", str(record), "--plot", str(picture), "--table", str(table)]) == 0
    assert "| conv3 | 64 | 2 of 24 | Q 2/0/0 | Q 2/0/0 |" in table.read_text()
    text = capsys.readouterr().out
    assert "quantization is better" in text and "scales fixed" in text and "2 of 24 channels" in text
    content = json.loads(record.read_text())
    (layer,) = content["layers"]
    assert [c["bits"] for c in layer["compressions"]] == [3, 8]
    for compression in layer["compressions"]:
        assert compression["density"] == compression["bits"] / 16 and compression["scales"] == "fixed"
        assert compression["count"]["quantization"] == 2 and compression["verdict"] == "quantization"
        for channel in compression["channels"]:
            assert channel["quantization"]["upper_bound"] < channel["pruning"]["lower_bound"]
    assert "<svg" in picture.read_text()


def test_command_on_all_layers_and_again(
    tmp_path: Path, small_layer: lb.Layer, random_gram: Callable[..., Float], capsys: pytest.CaptureFixture[str]
) -> None:
    other = lb.Layer(np.random.default_rng(5).normal(size=(3, 8)), random_gram(8), "net.second")
    source, out = tmp_path / "layers.safetensors", tmp_path / "out"
    lb.save_layers(source, [small_layer, other])
    arguments = [
        "versus",
        "--input",
        str(source),
        "--all",
        "--bits",
        "2:4",
        "--channels-sample",
        "2",
        "--out",
        str(out),
    ]
    assert main([*arguments, "--time-limit", "2", "--jobs", "1"]) == 0
    text = capsys.readouterr().out
    assert "net.second" in text and "all layers" in text and "2 of 5" in text
    record = json.loads((out / "versus.json").read_text())
    assert [entry["channels"] for entry in record["layers"]] == [[1, 3], [0, 2]]
    table, figure = (out / "versus.md").read_text(), (out / "versus.svg").read_text()
    assert table.count("|") > 20 and "4 bits, sparsity 75 %" in table and "<svg" in figure
    assert len(list((out / "checkpoint").iterdir())) == 2
    assert main([*arguments, "--time-limit", "2", "--jobs", "1"]) == 0
    assert (out / "versus.md").read_text() == table  # nothing was left to do


def test_interrupted_command_saves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> lb.Solution:
        raise KeyboardInterrupt

    monkeypatch.setattr(work_module, "solve", interrupt)
    out = tmp_path / "out"
    assert main(["versus", "--layer", "conv3", "--bits", "2", "--channels", "0", "--out", str(out)]) == 130
    assert json.loads((out / "versus.json").read_text())["layers"][0]["interrupted"] is True
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--all", "--layer", "conv3"],
        ["--all", "--channels", "0:2"],
        ["--layer", "conv3", "--channels", "0", "--channels-sample", "2"],
        ["--layer", "conv3", "--bits", "1:9"],
        ["--layer", "conv3", "--pattern", "2:4"],
        ["--layer", "conv3", "--pattern", "N:3"],
        ["--layer", "conv3", "--jobs", "0"],
        ["--layer", "conv3", "--time-limit", "-1"],
        ["--layer", "conv3", "--total-time", "0"],
        ["--layer", "conv3", "--plot", "x.gif"],
        ["--layer", "conv3", "--out", "/nowhere/at/all"],
        ["--layer", "nothing"],
    ],
)
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["versus", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_public_names() -> None:
    assert lb.Verdict is Verdict and {"versus", "Comparison", "Verdict"} <= set(lb.__all__)
