"""Several contenders against each other: storage, verdicts against brute force, bounds carried over, command line."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import brute_force

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.contests import contest_layers
from layerbounds.contests.contenders import contender_problems, parse_contender
from layerbounds.contests.contest import Rules, pruning_within
from layerbounds.contests.standings import named_pairs
from layerbounds.contests.tournament import Tournament
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.problems.parts import contains
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.storage import MASKS, mask_bits

CONTENDERS = ["2+1:2", "2+.5", 1, "pruned"]


def layer_of(n: int, rows: int = 2, seed: int = 4) -> lb.Layer:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * n, n)) + 0.6 * rng.normal(size=(4 * n, 1))
    return lb.Layer(rng.normal(size=(rows, n)), x.T @ x / len(x), "net.fc")


def choices(pattern: str, n: int, k: int) -> int:
    """How many sets of units use all of the capacities."""
    structure = parse_pattern(pattern).structure((n,), k)
    total = 1
    for group, capacity in enumerate(structure.capacity):
        units = np.flatnonzero(structure.group == group)
        total *= sum(1 for _ in itertools.combinations(units, int(capacity)))
    return total


@pytest.mark.parametrize(
    ("pattern", "n", "k", "bitmap", "entropy", "metadata"),
    [
        ("2:4", 8, 4, 8, 2 * 3, 4 * 2),
        ("8:16", 16, 8, 16, 14, 8 * 4),
        ("1:2", 7, 4, 6, 3, 3),  # the last group of one input keeps it
        ("unstructured", 10, 3, 10, 7, 3 * 4),
        ("unstructured", 10, 0, 10, 0, 0),
        ("unstructured", 10, 10, 0, 0, 0),
        ("block:4", 12, 8, 3, 2, 2 * 2),
    ],
)
def test_bits_of_masks(pattern: str, n: int, k: int, bitmap: int, entropy: int, metadata: int) -> None:
    structure = parse_pattern(pattern).structure((n,), k)
    bits = {mask: n * mask_bits(structure, mask) for mask in MASKS}  # type: ignore[arg-type]
    assert bits == {
        "none": 0,
        "bitmap": pytest.approx(bitmap),
        "entropy": pytest.approx(entropy),
        "metadata": pytest.approx(metadata),
    }
    assert bits["entropy"] >= math.log2(choices(pattern, n, k)) - 1e-9
    assert bits["entropy"] <= bits["bitmap"] + 1e-9


def test_storage_of_problems() -> None:
    layer = layer_of(16)
    both, sparse = lb.joint_problem(layer, 4, pattern="2:4"), lb.joint_problem(layer, 4, density=0.25)
    assert [both.storage(mask) for mask in MASKS] == pytest.approx([2.0, 3.0, 2.75, 3.0])  # type: ignore[arg-type]
    assert [sparse.storage(mask) for mask in MASKS] == pytest.approx([1.0, 2.0, 1.0 + 11 / 16, 2.0])  # type: ignore[arg-type]
    assert lb.quantization_problem(layer, 3).storage("bitmap") == 3.0
    assert lb.pruning_problem(layer, k=2).storage("bitmap") == 3.0
    with pytest.raises(InputError, match="mask is 'csr'; choose"):
        both.storage("csr")  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pattern", ["unstructured", "block:3", "N:8"])
def test_pruning_within_a_budget_keeps_as_much_as_fits(mask: Any, pattern: str) -> None:
    layer, rules = layer_of(24), Rules(pattern=pattern, mask=mask)
    for budget in (2.0, 3.0, 4.7, 16.0):
        try:
            problem = pruning_within(layer, budget, rules)
        except InputError:
            assert pattern == "N:8"
            assert lb.pruning_problem(layer, pattern="1:8").storage(mask) > budget
            continue
        assert problem.storage(mask) <= budget + 1e-9
        if pattern == "N:8":
            more = int(problem.pattern.label.split(":")[0]) + 1
            larger = lb.pruning_problem(layer, pattern=f"{more}:8") if more < 8 else None
        else:
            larger = lb.pruning_problem(layer, k=problem.kept + 1, pattern=pattern) if problem.kept < 24 else None
        assert larger is None or larger.storage(mask) > budget


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("3", "INT3"),
        ("int4", "INT4"),
        ("nf4", "NF4"),
        ("4+2:4", "INT4 + 2:4"),
        (" INT4 + 1/4 ", "INT4 + density 0.25"),
        ("4+block:4+.5", "INT4 + block:4 at density 0.5"),
        ("2:4", "pruned to 2:4"),
        ("0.25", "pruned to density 0.25"),
        ("1.0", "pruned to density 1"),
    ],
)
def test_texts(text: str, name: str) -> None:
    assert parse_contender(text).name == name


@pytest.mark.parametrize(
    ("contenders", "words"),
    [
        (["4+5", 2], "'4\\+5' has two of one kind; write bits"),
        (["4+nf4", 2], "two of one kind"),
        (["4+2:4+1:2", 2], "two of one kind"),
        (["9", 2], "has 9 bits; choose 1 to 8"),
        (["4+sparse", 2], "cannot be read at 'sparse'; write bits"),
        (["4+3/0", 2], "cannot be read at '3/0'"),
        (["4+1.5", 2], "keeps 1.5 of the inputs"),
        (["4+5:4", 2], "0 < N < M"),
        (["4+2:4+.5", 2], "leave out density and k"),
        (["4+block:4", 2], "nothing says how many"),
        ([3, "int3"], "less than two different contenders"),
        ([], "less than two different contenders"),
        ([3.5, 2], "a contender is 3.5; write bits"),
        ([True, 2], "a contender is True"),
        ("4+2:4", "contenders"),
    ],
)
def test_contenders_that_are_none_get_a_sentence(contenders: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        lb.contest(layer_of(8), contenders, time_limit=0.0)
    assert "\n" not in str(caught.value)


def test_rules_that_contradict_contenders() -> None:
    layer = layer_of(8)
    with pytest.raises(InputError, match="need a fixed grid; leave out scale='free'"):
        lb.contest(layer, ["4+2:4", 3], scale="free", time_limit=0.0)
    with pytest.raises(InputError, match="codebooks among contenders have fitted scales"):
        lb.contest(layer, ["nf4", 3], scale="free", time_limit=0.0)
    with pytest.raises(InputError, match="contender 'mine' is 3; pass a problem with a name"):
        lb.contest(layer, [("mine", 3), 2], time_limit=0.0)  # type: ignore[list-item]
    with pytest.raises(InputError, match="pass one of this layer"):
        lb.contest(layer, [lb.quantization_problem(layer_of(8), 2), 3], time_limit=0.0)
    with pytest.raises(InputError, match="does not fit into 2 bits"):
        lb.contest(layer, [2, "pruned"], pattern="N:4", mask="bitmap", time_limit=0.0)


def test_verdicts_agree_with_brute_force() -> None:
    layer = layer_of(6, rows=1)
    found = lb.contest(layer, CONTENDERS, time_limit=10.0, jobs=1, mask="none")
    # One bit for each of six weights has no room for a weight of 16.
    names = ["pruned, storage of INT2 + 1:2", "INT2 + 1:2", "INT2 + density 0.5", "INT1"]
    assert [e.name for e in found.entrants] == names
    problems = {p.fingerprint(): p for _, p in contender_problems(layer, CONTENDERS, Rules(mask="none"))}
    optima = [brute_force(problems[e.fingerprint]) for e in found.entrants]
    for entrant, optimum in zip(found.entrants, optima, strict=True):
        assert entrant.bounds[0, 0] <= optimum * (1 + 1e-9) and optimum <= entrant.bounds[0, 1] * (1 + 1e-9)
        assert entrant.storage == problems[entrant.fingerprint].storage("none")
    for i, j in found.pairs:
        expected = lb.Rank.BETTER if optima[i] < optima[j] * (1 - 1e-5) else lb.Rank.WORSE
        if abs(optima[i] - optima[j]) > 1e-5 * optima[i]:
            assert found.rank(i, j) == found.ranks(i, j)[0] == expected
            reverse = lb.Rank.WORSE if expected == lb.Rank.BETTER else lb.Rank.BETTER
            assert found.rank(j, i) == reverse
            assert found.count(i, j)[expected] == 1
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [c["name"] for c in record["contenders"]] == [e.name for e in found.entrants]
    assert [p["rank"] for p in record["pairs"]] == [str(found.rank(i, j)) for i, j in found.pairs]
    assert found.statement().count("\n") == len(found.pairs) - 1


def test_problems_are_contenders_with_or_without_a_name() -> None:
    layer = layer_of(8)
    given = lb.joint_problem(layer, 2, scale=[0.4, 0.6], pattern="1:2")
    found = lb.contest(layer, [given, ("mine", lb.quantization_problem(layer, 2)), 1], time_limit=0.0, jobs=1)
    assert [entrant.name for entrant in found.entrants] == ["INT1", given.label, "mine"]


def test_what_contains_what() -> None:
    layer = layer_of(8)
    dense, coarse = lb.quantization_problem(layer, 3), lb.quantization_problem(layer, 2)
    two_four, half = lb.joint_problem(layer, 3, pattern="2:4"), lb.joint_problem(layer, 3, k=4)
    blocks, quarter = lb.joint_problem(layer, 3, k=4, pattern="block:2"), lb.joint_problem(layer, 3, k=2)
    binary = lb.joint_problem(layer, 1, k=4)
    pruned, mask = lb.pruning_problem(layer, pattern="2:4"), lb.pruning_problem(layer, pattern="2:4", refit=False)
    wide = lb.pruning_problem(layer, k=4)
    inside = {
        (dense, two_four), (dense, half), (dense, blocks), (dense, quarter), (half, two_four), (half, blocks),
        (half, quarter), (pruned, two_four), (pruned, mask), (wide, two_four), (wide, half), (wide, blocks),
        (wide, quarter), (wide, binary), (wide, pruned), (wide, mask),
    }  # fmt: skip
    everything = [dense, coarse, two_four, half, blocks, quarter, binary, pruned, mask, wide]
    rng = np.random.default_rng(0)
    for outer, inner in itertools.permutations(everything, 2):
        assert contains(outer.parts, inner.parts) == ((outer, inner) in inside), (outer.label, inner.label)
        if contains(outer.parts, inner.parts):
            for _ in range(5):
                weights = inner.project(rng.normal(size=layer.matrix.shape), [0, 1])
                assert not outer.violation(weights, [0, 1]).any()


def test_bounds_are_carried_over() -> None:
    layer = layer_of(24)
    state = Tournament(layer, [4, "4+.5", "4+.25", "1/2"], None, Rules(jobs=1, mask="bitmap"))
    state.round(0.0)
    bounds = {name: contender.bounds for name, contender in zip(state.names, state.contenders, strict=True)}
    quarter, half = bounds["INT4 + density 0.25"], bounds["INT4 + density 0.5"]
    for outer in (half, bounds["INT4"], bounds["pruned to density 0.5"]):
        assert np.all(quarter >= outer)
    assert np.all(half >= bounds["INT4"])
    # Weights of more compressed contenders are allowed for those that hold them.
    assert state.contenders[state.names.index("INT4")].has_weights.all()


def test_a_run_goes_on_from_its_folder(tmp_path: Path) -> None:
    layer = layer_of(12)
    rules = Rules(jobs=1, mask="bitmap")
    (first,) = contest_layers([layer], CONTENDERS, rules=rules, time_limit=0.0, checkpoint=tmp_path / "run")
    state = Tournament(layer, CONTENDERS, None, rules)
    from layerbounds.contests.checkpoint import Checkpoint

    Checkpoint(tmp_path / "run").attach(state)
    assert state.completed == 0.0
    for entrant, contender in zip(first.entrants, state.contenders, strict=True):
        np.testing.assert_array_equal(entrant.bounds, contender.bounds)
    (file,) = (tmp_path / "run").iterdir()
    file.write_text(file.read_text().replace("INT1", "INT5"))
    with pytest.raises(FileFormatError, match="other compressions"):
        Checkpoint(tmp_path / "run").attach(Tournament(layer, CONTENDERS, None, rules))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layers.safetensors"
    lb.save_layers(file, [layer_of(8), lb.Layer(layer_of(10).weight, layer_of(10).gram[0], "net.out")])
    command = ["versus", "--input", file, "--contenders", "3+2:4,3+.5,2,pruned", "--time-limit", 1, "--jobs", 1]
    out = tmp_path / "run"

    def run(*arguments: object) -> str:
        assert main([str(a) for a in arguments]) == 0
        return capsys.readouterr().out

    shown = run(*command, "--layer", "fc", "--out", out)
    assert "net.fc: smallest errors, mask: bitmap" in shown and "#1" in shown and "channels better/worse/open" in shown
    record = json.loads((out / "versus.json").read_text())
    assert record["options"]["mask"] == "bitmap" and record["options"]["bits"] is None
    (layer,) = record["layers"]
    assert {c["name"]: c["storage"] for c in layer["contenders"]}["INT3 + 2:4"] == 2.5
    assert (out / "versus.svg").stat().st_size > 1000
    assert "| INT2 | " in (out / "versus.md").read_text()
    shown = run(*command, "--all", "--mask", "entropy", "--plot", tmp_path / "all.svg", "--table", tmp_path / "all.md")
    assert "2 layers: smallest errors, mask: entropy" in shown
    assert "net.out (n = 10):" in (tmp_path / "all.md").read_text()
    assert main([*map(str, command), "--layer", "fc", "--bits", "3"]) == 2
    assert "pass either --bits or --contenders" in capsys.readouterr().err


def test_pairs_of_several_layers_are_found_by_their_names() -> None:
    layers = [layer_of(8), lb.Layer(layer_of(10).weight, layer_of(10).gram[0], "net.out")]
    found = contest_layers(layers, ["3+1:2", 2], rules=Rules(jobs=1, mask="none"), time_limit=0.0)
    assert named_pairs(found) == [("INT3 + 1:2", "INT2")]


def test_masks_in_versus() -> None:
    layer = layer_of(32)
    free = lb.versus(layer, (2, 3), time_limit=0.0, jobs=1)
    stored = lb.versus(layer, (2, 3), mask="bitmap", time_limit=0.0, jobs=1)
    assert [level.kept for level in free.levels] == [4, 6] and [level.kept for level in stored.levels] == [2, 4]
    assert [level.density for level in stored.levels] == [2 / 32, 4 / 32]
    assert stored.to_dict()["compressions"][0]["mask"] == "bitmap"
    groups = lb.versus(layer, (3,), mask="metadata", pattern="N:16", time_limit=0.0, jobs=1)
    assert groups.levels[0].pruning_problem == "pruning 2:16 refit"  # 2·(16 + 4)/16 = 2.5 bits
