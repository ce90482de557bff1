"""Problems over all scales, with a search that tries everything: arguments, evaluation, solutions, files, commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.optimize import nnls

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.main import main
from layerbounds.comparison.rescaled import run_rescaled, starting_grids
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.layers.layer import Layer
from layerbounds.methods.specs import parse_method
from layerbounds.problems.free_scale import FreeScaleProblem, is_definite
from layerbounds.problems.problem import Problem
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, Dual, RawSolve, SearchProof, Status
from layerbounds.search.families import families


class TriedScales:
    """Every choice of codes, with the best scales by nonnegative least squares."""

    allowed = ScaledLevels
    requirements = frozenset({"free scales"})

    def prepare(self, problem: Any, group: int, jobs: int) -> None:
        """Nothing is shared."""

    def solve(self, task: Task[ScaledLevels], control: Control) -> RawSolve:
        best, error = None, np.inf
        values, vectors = np.linalg.eigh(task.gram)
        root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
        target = np.atleast_2d(task.target)
        side = (target @ root.T).ravel()
        for offset, directions, _ in task.allowed.pieces():
            weights = offset
            if directions.shape[-1]:
                flat = directions if directions.ndim == 3 else directions[None]
                columns = np.concatenate([root @ part for part in flat])
                weights = directions @ nnls(columns, side)[0]
            deviation = np.atleast_2d(weights) - target
            value = float(np.sum((deviation @ task.gram) * deviation))
            if value < error:
                best, error = weights, value
        return RawSolve(best, Status.OPTIMAL, proof=SearchProof(error, 1e-9 * task.energy), nodes=1)

    def root_dual(self, task: Task[ScaledLevels], weights: Float | None, seconds: float) -> Dual | None:
        return None

    def examples(self, layer: Layer) -> Iterator[tuple[str, Problem]]:
        yield "2 bits", lb.quantization_problem(layer, 2, scale="free")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families(), ScaledLevels, TriedScales())


@pytest.fixture
def layer(rng: np.random.Generator) -> Layer:
    x = rng.normal(size=(40, 4)) + rng.normal(size=(40, 1))
    x[:, 2] = 0.0
    return Layer.from_activations(rng.normal(size=(3, 4)), x, name="small")


HOW: list[dict[str, Any]] = [
    {},
    {"zero_point": "free"},
    {"zero_point": "real"},
    {"signed_scale": True},
    {"granularity": "tensor"},
    {"granularity": 2},
    {"g_idx": [0, 1, 1, 0]},
    {"bias": "refit"},
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_solution_says_its_scales(tried: None, layer: Layer, how: dict[str, Any], tmp_path: Path) -> None:
    problem = lb.quantization_problem(layer, 1 if "granularity" in how else 2, scale="free", **how)
    assert isinstance(problem, FreeScaleProblem)
    solution = lb.solve(problem, jobs=1)
    assert np.all(solution.upper_bound - solution.lower_bound <= 1e-8 * solution.energy)
    scale, zero, grid = solution.scale, solution.zero_point, solution.grid
    assert scale is not None and zero is not None and grid is not None
    groups = 2 if how.get("granularity") == 2 or "g_idx" in how else 1
    assert scale.shape == zero.shape == (3, groups)
    judged = lb.evaluate(problem, solution.weights)
    assert judged.feasible.all() and np.all(judged.violation == 0) and np.all(judged.off_grid == 0)
    np.testing.assert_array_equal(judged.scale, scale)
    size = 1e-12 * solution.energy.max()
    np.testing.assert_allclose(judged.error, solution.upper_bound, rtol=1e-9, atol=size)
    np.testing.assert_allclose(judged.snapped_error, judged.error, rtol=1e-9, atol=size)
    # The grid of the found scales has the weights, dead inputs included.
    fixed = lb.quantization_problem(problem.layer, grid=grid)
    assert np.max(lb.evaluate(fixed, solution.weights).violation) <= 1e-15 * np.abs(solution.weights).max()
    if how.get("granularity") == "tensor":
        assert solution.sets == [[0, 1, 2]] and np.all(scale == scale[0])

    record = solution.to_dict()
    rows = [number for entry in record["channels"] for number in entry["scale"]]
    np.testing.assert_array_equal(rows, scale)
    assert len(record["channels"][0]["zero_point"]) == len(record["channels"][0]["rows"])
    json.dumps(record, allow_nan=False)
    solution.save_weights(tmp_path / "w.safetensors")
    saved = load_file(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(saved["small.scale"], scale)
    np.testing.assert_array_equal(saved["small.zero_point"], zero)


def test_freedom_never_costs(tried: None, layer: Layer) -> None:
    def error(bits: int = 2, **how: Any) -> float:
        return float(lb.solve(lb.quantization_problem(layer, bits, **how), jobs=1).upper_bound.sum())

    free = error(scale="free")
    for least, most in (
        (error(scale="free", zero_point="free"), free),
        (error(scale="free", zero_point="real"), error(scale="free", zero_point="free")),
        (error(scale="free", signed_scale=True), free),
        (error(scale="free", bias="refit"), free),
        (error(scale="free", g_idx=[0, 1, 1, 0]), free),
        (free, error()),
        (free, error(range="gram")),
        (error(1, scale="free"), error(1, scale="free", granularity="tensor")),
    ):
        assert least <= most * (1 + 1e-9)


def test_weights_of_every_type_are_recognised(layer: Layer, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    problem = lb.quantization_problem(layer, 3, scale="free", zero_point="free")
    plain = problem.project(layer.matrix, [0, 1, 2])
    energy = layer.energy().max()
    for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.tensor(plain).to(kind)
        judged = lb.evaluate(problem, tensor)
        assert judged.feasible.all(), kind
        again = lb.evaluate(problem, tensor.double().numpy(), dtype=str(kind).removeprefix("torch."))
        np.testing.assert_array_equal(again.scale, judged.scale)
        np.testing.assert_array_equal(again.snapped_error, judged.snapped_error)
        # Exactly multiples of the codes, within the rounding of the type.
        assert judged.zero_point is not None and judged.scale is not None
        unit = 2.0 ** -{"float64": 50, "float32": 22, "bfloat16": 6, "float16": 9}[str(kind)[6:]]
        np.testing.assert_allclose(judged.snapped_error, lb.evaluate(problem, plain).error, atol=10 * unit * energy)
    assert lb.evaluate(problem, plain.astype(np.float16)).feasible.all()
    assert not lb.evaluate(problem, plain.astype(np.float16).astype(np.float64)).feasible.all()
    bits = lb.evaluate(problem, torch.tensor(layer.matrix))
    assert not bits.feasible.any() and np.all(bits.violation > 1e-3) and "off the grid" in bits.describe()
    with pytest.raises(InputError, match="no float16; leave out dtype"):
        lb.evaluate(problem, layer.matrix, dtype="float16")
    with pytest.raises(InputError, match="'int8'; choose"):
        lb.evaluate(problem, plain, dtype="int8")


def test_snapped_errors_of_other_problems(layer: Layer) -> None:
    grid = lb.quantization_problem(layer, 2)
    rounded = grid.project(layer.matrix, [0, 1, 2])
    judged = lb.evaluate(grid, layer.matrix)
    np.testing.assert_allclose(judged.snapped_error, lb.evaluate(grid, rounded).error)
    assert judged.scale is not None and judged.scale.shape == (3, 1)
    solution = lb.solve(grid, channels=[2], jobs=1)
    np.testing.assert_array_equal(solution.scale, judged.scale[[2]])
    assert solution.grid is grid.grid  # type: ignore[attr-defined]
    pruned = lb.pruning_problem(layer, k=2)
    assert lb.evaluate(pruned, layer.matrix).scale is None
    assert lb.solve(pruned, channels=[0], jobs=1).grid is None
    assert "scale" not in lb.solve(pruned, channels=[0], jobs=1).to_dict()["channels"][0]


def test_contradicting_arguments(layer: Layer) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"bits": 2, "scale": "fre"}, "scale is 'fre'; pass 'free' or numbers"),
        ({"scale": "free"}, "either bits or a codebook"),
        ({"bits": 2, "scale": "free", "codebook": "nf4"}, "either bits or a codebook"),
        ({"bits": 2, "scale": "free", "range": "mse"}, "leave out range"),
        ({"bits": 2, "scale": "free", "g_idx": [0, 0, 1, 1], "granularity": 2}, "leave out granularity"),
        ({"bits": 2, "scale": "free", "g_idx": [0, 0, 9, 1]}, "groups are numbered from 0 to at most 3"),
        ({"bits": 2, "scale": "free", "zero_point": 3}, "pass 'free' for integer zero points"),
        ({"bits": 2, "scale": "free", "zero_point": "free", "symmetric": True}, "has no zero point"),
        ({"codebook": "nf4", "scale": "free", "zero_point": "free"}, "a codebook has no zero point"),
        ({"codebook": [0.0], "scale": "free"}, "no level but 0"),
        ({"bits": 9, "scale": "free"}, "bits is 9"),
        ({"bits": 2, "scale": "free", "signed_scale": "yes"}, "pass True or False"),
        ({"bits": 2, "signed_scale": True}, "belongs to scale='free'"),
        ({"bits": 2, "zero_point": "real"}, "or scale='free' with it"),
        ({"bits": 2, "scale": "free", "granularity": 0}, "granularity"),
        ({"grid": lb.uniform_grid(layer.weight, 2), "scale": "free"}, "leave out scale"),
    ]
    for how, words in cases:
        with pytest.raises(InputError, match=words):
            lb.quantization_problem(layer, **how)
    grouped = Layer(layer.weight[:2], np.stack([layer.gram[0]] * 2))
    with pytest.raises(InputError, match="cannot share one free scale"):
        lb.quantization_problem(grouped, 2, scale="free", granularity="tensor")
    shared = lb.quantization_problem(layer, 2, scale="free", granularity="tensor")
    with pytest.raises(InputError, match="share one scale; choose channel 1, too"):
        lb.evaluate(shared, layer.matrix, channels=[0, 2])


def test_labels_and_fingerprints(layer: Layer) -> None:
    problems = [lb.quantization_problem(layer, 2, scale="free", **how) for how in HOW]
    problems.append(lb.quantization_problem(layer, codebook="mxfp4", scale="free"))
    labels = [problem.label for problem in problems]
    assert len(set(labels)) == len({problem.fingerprint() for problem in problems}) == len(problems)
    assert labels[0] == "2-bit symmetric, all scales per channel"
    assert labels[2] == "2-bit asymmetric, all scales and real zero points per channel"
    assert labels[-1] == "mxfp4, powers of two per group of 32"
    assert all(problem.bits_per_weight == 2.0 for problem in problems[:-1])
    for problem in problems:
        small = problem.like(Layer(np.ones((1, 4)), np.eye(4)))
        assert small.requirement == "free scales" and small.allowed(0).violation(np.zeros(4)) == 0.0
    singular = Layer(layer.weight, np.ones((4, 4)))
    problem = lb.quantization_problem(singular, 2, scale="free")
    assert "weights up to 256 times the largest where the Gram matrix is singular" in problem.label
    limit = problem.allowed(0).limit  # type: ignore[attr-defined]
    assert limit == 256 * np.abs(layer.weight[0]).max() and not is_definite(np.ones((4, 4))) and is_definite(np.eye(4))


def test_what_needs_given_scales_says_so(layer: Layer) -> None:
    problem = lb.quantization_problem(layer, 2, scale="free")
    with pytest.raises(UnsupportedProblemError, match="cannot treat free scales"):
        lb.run_heuristic("gptq", problem)
    with pytest.raises(UnsupportedProblemError, match="cannot treat free scales"):
        lb.solve(problem, "highs")


def test_methods_alternate_with_the_best_scales(tried: None, layer: Layer) -> None:
    for how in ({}, {"zero_point": "free"}, {"zero_point": "real"}, {"granularity": "tensor"}, {"granularity": 2}):
        problem = lb.quantization_problem(layer, 2, scale="free", **how)  # type: ignore[arg-type]
        assert isinstance(problem, FreeScaleProblem)
        starts = starting_grids(problem, ["mse", "minmax"])
        weights, _ = run_rescaled(parse_method("rtn"), problem, starts, [0, 1, 2], 0, 1)
        judged = lb.evaluate(problem, weights)
        assert judged.feasible.all()
        for start in starts:
            plain = lb.evaluate(start, lb.run_heuristic("rtn", start)).error
            assert judged.error.sum() <= plain.sum() * (1 + 1e-9)
    result = lb.compare(layer, bits=2, scale="free", range=["mse", "gram"], methods=["rtn"], jobs=1)
    grids = {row["grid"] for row in result}
    assert len(grids) == 3 and "2-bit symmetric, all scales per channel" in grids
    best = {row["grid"]: row for row in result if row["kind"] == "certified"}
    free = best["2-bit symmetric, all scales per channel"]
    assert all(free["error"] <= row["error"] * (1 + 1e-9) for row in best.values())
    assert all(row["feasible"] for row in result)
    given = lb.compare(
        layer,
        bits=2,
        scale="free",
        methods=["rtn"],
        weights={"mine": 0.3 * np.rint(layer.weight / 0.3).clip(-0.6, 0.3)},
    )
    assert "mine" in {row["method"] for row in given}
    shared = lb.compare(layer, bits=1, scale="free", granularity="tensor", methods=["rtn"], jobs=1)
    assert len(shared) == 2 and all(row["feasible"] for row in shared)
    with pytest.raises(InputError, match="scale='free'"):
        lb.compare(layer, bits=2, scale="best")


def test_versus_over_all_scales(tried: None, layer: Layer) -> None:
    fixed = lb.versus(layer, [2], jobs=1)
    free = lb.versus(layer, [2], jobs=1, scale="free")
    assert free.levels[0].scales == "free" and "scales fixed" not in free.statement()
    assert free.to_dict()["compressions"][0]["scales"] == "free"
    assert np.all(free.levels[0].quantization[:, 0] <= fixed.levels[0].quantization[:, 1] * (1 + 1e-9))
    for how, words in (
        ({"scale": "all"}, "pass 'free'"),
        ({"zero_point": "free"}, "scale='free' with it"),
        ({"scale": "free", "range": "minmax"}, "leave out range"),
    ):
        with pytest.raises(InputError, match=words):
            lb.versus(layer, [2], jobs=1, **how)  # type: ignore[arg-type]


def test_commands(tried: None, layer: Layer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "layers.safetensors", tmp_path / "out.json"
    lb.save_layers(file, [layer])
    source = ["--input", str(file), "--layer", "small", "--jobs", "1"]
    free = ["--bits", "2", "--scale", "free"]
    assert main(["solve", *source, *free, "--zero-point", "free", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert "all scales and zero points" in record["problem"]["allowed"] and record["channels"][0]["scale"]
    assert record["options"]["scale"] == "free" and record["options"]["zero_point"] == "free"
    assert main(["solve", *source, *free, "--signed-scale", "--granularity", "2"]) == 0
    assert main(["compare", *source, *free, "--methods", "rtn", "--range", "mse"]) == 0
    assert main(["versus", *source, *free, "--zero-point", "real", "--time-limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "all scales" in shown
    for wrong, words in (
        (["solve", *source, "--bits", "2", "--scale", "0.5"], "write free"),
        (["solve", *source, "--bits", "2", "--zero-point", "real"], "pass --scale free"),
        (["solve", *source, "--k", "2", "--scale", "free"], "leave them out when"),
        (["compare", *source, "--bits", "2", "--zero-point", "real"], "scale='free'"),
    ):
        assert main(wrong) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_layers_without_live_inputs_and_with_one(tried: None) -> None:
    for gram in (np.zeros((3, 3)), np.diag([0.0, 2.0, 0.0])):
        layer = Layer(np.array([[0.3, -0.4, 0.5], [1.0, 2.0, -3.0]]), gram)
        for how in ({}, {"zero_point": "free"}, {"zero_point": "real"}, {"granularity": "tensor"}, {"granularity": 2}):
            problem = lb.quantization_problem(layer, 2, scale="free", **how)  # type: ignore[arg-type]
            solution = lb.solve(problem, jobs=1)
            shared = how == {"granularity": "tensor"} and gram.any()
            assert shared or np.all(solution.upper_bound <= 1e-12 * np.maximum(solution.energy, 1e-300))
            assert lb.evaluate(problem, solution.weights).feasible.all()
            assert np.array_equal(solution.weights, problem.project(solution.weights, [0, 1]))
    zeros = Layer(np.zeros((1, 3)), np.eye(3))
    solution = lb.solve(lb.quantization_problem(zeros, 2, scale="free"), jobs=1)
    assert not solution.weights.any() and solution.scale is not None and solution.scale.tolist() == [[1.0]]


def test_weights_of_a_checkpoint_keep_their_type(tried: None, layer: Layer, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    layers, weights, out = (tmp_path / name for name in ("layers.safetensors", "mine.safetensors", "out.json"))
    lb.save_layers(layers, [layer])
    problem = lb.quantization_problem(layer, 2, scale="free")
    save_file({"small.weight": torch.tensor(problem.project(layer.matrix, [0, 1, 2])).to(torch.bfloat16)}, weights)
    arguments = ["--input", str(layers), "--layer", "small", "--bits", "2", "--scale", "free", "--methods", "rtn"]
    assert main(["compare", *arguments, "--weights", str(weights), "--json", str(out)]) == 0
    rows = {row["method"]: row for row in json.loads(out.read_text())["records"]}
    given = rows["mine.safetensors, without its rounding"]
    assert given["feasible"] and given["error"] >= given["lower_bound"] and given["excess_percent"] < 1e4
