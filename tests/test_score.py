"""Quantized checkpoints beside the best on their own grid and at any scales: figures, names, files, the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import checkpoint, quantized

import layerbounds as lb
from layerbounds.checkpoints.writers import gptq
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError, UnknownNameError, UnsupportedProblemError
from layerbounds.layers.files import write_tensors
from layerbounds.scoring.free import freed
from layerbounds.scoring.verdict import Distance, distance, enclosed_errors, figure


def layer(name: str = "a", out: int = 3, n: int = 6, seed: int = 0) -> lb.Layer:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, n)) + rng.normal(size=(60, 1))
    return lb.Layer.from_activations(rng.normal(size=(out, n)), x, name)


def rounded(of: lb.Layer, grid: lb.Grid, name: str | None = None, **fields: Any) -> lb.QuantizedWeight:
    return quantized(name or of.name, grid, grid.nearest(of.matrix).reshape(of.weight.shape), **fields)


def best(of: lb.Layer, grid: lb.Grid) -> np.ndarray:
    """Least errors by enumeration, a channel each."""
    found = []
    for channel in range(of.out_features):
        levels = grid.levels(channel)
        points = np.stack(np.meshgrid(*levels, indexing="ij"), axis=-1).reshape(-1, of.in_features)
        d = points - of.target[channel]
        found.append(np.einsum("ij,jk,ik->i", d, of.gram[0], d).min())
    return np.array(found)


# --- figures -------------------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_the_optimum() -> None:
    of = layer()
    grid = lb.uniform_grid(of.weight, 2)
    scores = lb.score(checkpoint({"a": rounded(of, grid)}), {"a": of}, jobs=1)
    own, least = scores["a"].own, best(of, grid).sum()
    assert own is not None and own.optimal == len(own.statuses) == 3 and not own.trivial
    assert np.all(np.array(own.lower_bounds) <= best(of, grid) * (1 + 1e-9))
    true = 100 * (scores["a"].error / least - 1)
    assert own.distance.at_least <= true * (1 + 1e-9) and own.distance.at_most is not None
    assert true <= own.distance.at_most * (1 + 1e-9) and own.distance.at_most - own.distance.at_least < 1e-3 * true
    assert own.lower_bound <= least * (1 + 1e-9) and least <= own.upper_bound * (1 + 1e-9)
    assert scores["a"].relative_error == pytest.approx(scores["a"].error / of.energy().sum())


def test_the_best_weights_are_called_optimal() -> None:
    of = layer()
    problem = lb.quantization_problem(of, 2)
    weights = lb.solve(problem, jobs=1).weights
    found = lb.score(checkpoint({"a": quantized("a", problem.grid, weights)}), [of], jobs=1)["a"].own
    assert found is not None and found.words() == "optimal" and found.distance.at_least == 0


def test_any_scales_are_at_least_as_good_as_the_own_ones() -> None:
    of = layer()
    scores = lb.score(checkpoint({"a": rounded(of, lb.uniform_grid(of.weight, 2))}), [of], scale="free", jobs=1)
    own, free = scores["a"].own, scores["a"].free
    assert own is not None and free is not None
    assert free.lower_bound <= own.lower_bound <= own.upper_bound and free.upper_bound <= own.upper_bound * (1 + 1e-9)


def test_trivial_bounds_of_free_scales_are_called_so() -> None:
    of = layer(n=4)
    grid = lb.uniform_grid(of.weight, 3, granularity=1)
    found = lb.score(checkpoint({"a": rounded(of, grid)}), [of], scale="free", jobs=1)["a"]
    assert found.free is not None and found.free.trivial and found.free.words() == "only a trivial bound"
    known = dataclasses.replace(found.free, distance=Distance(None, 9.3))
    assert known.words() == "only a trivial bound, at least 9.3 % above optimal"
    assert found.own is not None and found.own.words().startswith("at most")


def test_an_error_beyond_that_of_nothing_is_a_suspected_mismatch() -> None:
    of, other = layer(), layer(seed=1)
    weight = rounded(other, lb.uniform_grid(other.weight, 3))
    found = lb.score(checkpoint({"a": weight}), [of], jobs=1)["a"]
    assert found.status == "suspected mismatch" and found.own is None
    assert found.relative_error is not None and found.relative_error > 1 and "larger than without" in found.notes[-1]


def test_only_some_channels() -> None:
    of = layer()
    grid = lb.uniform_grid(of.weight, 2)
    found = lb.score(checkpoint({"a": rounded(of, grid)}), [of], channels=[2, 0], jobs=1)["a"]
    d = grid.nearest(of.matrix) - of.matrix
    assert found.channels == [2, 0] and found.own is not None and len(found.own.upper_bounds) == 2
    assert found.error == pytest.approx(np.einsum("ij,jk,ik->i", d, of.gram[0], d)[[0, 2]].sum())


def test_rounding_of_the_levels_is_reported() -> None:
    of = layer()
    grid = lb.Grid(np.arange(-8.0, 8.0), np.full(3, 0.3123), 0.0, 6)
    matrix = lb.solve(lb.quantization_problem(of, grid=grid), jobs=1).weights * 1.0
    coarse = quantized("a", grid, matrix, dtype="bfloat16")
    found = lb.score(checkpoint({"a": coarse}), [of], jobs=1)["a"]
    assert found.loaded_error != found.error
    share = abs(found.loaded_error / found.error - 1)
    assert any("bfloat16" in note for note in found.notes) == (share > 0.01)


def test_errors_are_enclosed() -> None:
    from fractions import Fraction

    of = layer(n=5)
    weights = np.round(of.matrix, 1)
    low, high = enclosed_errors(of, weights, [0, 1, 2])
    for row in range(3):
        d = [Fraction(v) - Fraction(w) for v, w in zip(weights[row], of.target[row], strict=True)]
        exact = sum(
            a * b * Fraction(h) for a, line in zip(d, of.gram[0], strict=True) for b, h in zip(d, line, strict=True)
        )
        assert Fraction(low[row]) <= exact <= Fraction(high[row]) and high[row] - low[row] < 1e-13 * high[row]


@pytest.mark.parametrize(
    ("value", "up", "text"),
    [(38.4, True, "39"), (38.4, False, "38"), (9.01, True, "9.1"), (0.0, False, "0"), (123.2, True, "124"),
     (1e-9, True, "0.0001"), (1e-9, False, "0"), (0.1, True, "0.11"), (99.2, True, "100"), (float("inf"), True, "∞")],
)  # fmt: skip
def test_figures_are_rounded_outward(value: float, up: bool, text: str) -> None:
    assert figure(value, up) == text


def test_words() -> None:
    assert Distance(37.9, 9.3).words() == "at most 38 % above optimal, at least 9.3 %"
    assert Distance(37.9, 9.3).short() == "9.3 – 38 %" and Distance(None, 9.3).short() == "from 9.3 %"
    assert Distance(37.9, 0.0).words() == "at most 38 % above optimal"
    assert Distance(None, 9.3).words() == "at least 9.3 % above optimal"
    assert Distance(None, 0.0).words() == "nothing known"
    assert Distance(2900.0, 150.0).words() == "at most 31 times the optimum, at least 150 % above optimal"
    assert Distance(1e-5, 0.0).words() == "optimal"
    assert distance((1.0, 1.0), 0.5, 0.8).at_most == pytest.approx(100) and distance((0.0, 0.0), 0.0, 0.0).optimal
    assert distance((1.0, 1.0), 0.0, 0.8).at_most is None


# --- free problems of stored grids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "scale", "zero", "offset", "kind", "signed"),
    [
        (range(16), 0.5, 8.0, None, "none", False),
        (range(-8, 8), -0.5, 0.0, None, "none", True),
        ([-1, 0, 1], -0.5, 0.0, None, "none", False),
        (range(16), 0.5, None, None, "integer", False),
        (range(-8, 8), 0.5, None, None, "integer", False),
        (range(16), 0.5, 0.0, 0.3, "real", False),
    ],
)
def test_free_problems_have_the_codes_of_the_format(
    codes: Any, scale: float, zero: float | None, offset: float | None, kind: str, signed: bool
) -> None:
    of = layer()
    zeros = np.array([3.0, 5.0, 3.0]) + min(codes) if zero is None else np.full(3, zero)
    grid = lb.Grid(list(codes), np.full(3, scale), zeros, 6, offset=None if offset is None else np.full(3, offset))
    problem, _ = freed(of, rounded(of, grid))
    assert problem.zero == kind and problem.signed == signed
    weights = grid.nearest(of.matrix)
    # What the file has is allowed, up to the rounding of an offset.
    assert lb.evaluate(problem, weights).violation.max() < 1e-15


def test_minima_of_codebooks_have_no_free_problem() -> None:
    of = layer()
    grid = lb.Grid([-1, 0, 3], np.full(3, 0.4), 0.0, 6, offset=np.full(3, 0.1))
    with pytest.raises(UnsupportedProblemError, match="codebook"):
        freed(of, rounded(of, grid))
    found = lb.score(checkpoint({"a": rounded(of, grid)}), [of], scale="free", jobs=1)["a"]
    assert found.free is None and found.own is not None and "codebook" in found.notes[-1]


def test_powers_of_two_stay_powers_of_two() -> None:
    of = layer()
    grid = lb.codebook_grid(of.weight, "mxfp4")
    assert freed(of, rounded(of, grid, format="compressed-tensors mxfp4"))[0].powers_of_two
    assert not freed(of, rounded(of, grid, format="fp4"))[0].powers_of_two


# --- names ---------------------------------------------------------------------------------------------------------


def test_names_are_paired_by_their_ends(tmp_path: Path) -> None:
    of = layer("model.layers.0.mlp.up_proj")
    grid = lb.uniform_grid(of.weight, 3)
    for stored in ("model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"):
        scores = lb.score(checkpoint({stored: rounded(of, grid, stored)}), [of], total_time=0.1, jobs=1)
        assert scores.layers[0].stored == stored
    weights = {"x": rounded(of, grid, "x")}
    with pytest.raises(InputError, match="none of the captured layers"):
        lb.score(checkpoint(weights), [of], jobs=1)
    for text in ('{"up_proj": "x"}', "up_proj x\n", "# captured, stored\nmodel.layers.0.mlp.up_proj,x\n"):
        (tmp_path / "map").write_text(text, encoding="utf-8")
        scores = lb.score(checkpoint(weights), [of], names=tmp_path / "map", total_time=0.1, jobs=1)
        assert scores.layers[0].stored == "x"
    with pytest.raises(UnknownNameError, match="captured layer"):
        lb.score(checkpoint(weights), [of], names={"x": "up_proj"}, jobs=1)
    (tmp_path / "map").write_text("a b c\n", encoding="utf-8")
    with pytest.raises(FileFormatError, match="two columns"):
        lb.score(checkpoint(weights), [of], names=tmp_path / "map", jobs=1)


@pytest.mark.parametrize(
    ("captured", "stored"),
    [("b.0.attn.qkv_proj", ["q_proj", "k_proj", "v_proj"]), ("b.0.attn.k_proj", ["qkv_proj"])],
)
def test_fused_and_split_layers_are_refused(captured: str, stored: list[str]) -> None:
    of = layer(captured)
    grid = lb.uniform_grid(of.weight, 3)
    weights = {f"b.0.attn.{name}": rounded(of, grid, name) for name in stored}
    with pytest.raises(InputError, match=r"in parts|fused"):
        lb.score(checkpoint(weights), [of], jobs=1)


def test_layers_of_another_shape_are_refused() -> None:
    of, other = layer("a"), layer("a", out=6, n=3)
    with pytest.raises(UnsupportedProblemError, match="looks transposed"):
        lb.score(checkpoint({"a": rounded(other, lb.uniform_grid(other.weight, 3))}), [of], jobs=1)


def test_what_only_one_side_has_is_listed() -> None:
    one, two = layer("one"), layer("two", seed=2)
    scores = lb.score(checkpoint({"one": rounded(one, lb.uniform_grid(one.weight, 2))}), [one, two], jobs=1)
    assert scores.unmatched == ["two"] and [s.layer for s in scores] == ["one"]
    with pytest.raises(UnknownNameError):
        scores["two"]
    with pytest.raises(InputError, match="not among the quantized layers"):
        lb.score(checkpoint({"one": rounded(one, lb.uniform_grid(one.weight, 2))}), [one, two], "two", jobs=1)


def test_tensors_that_no_format_explains_are_refused() -> None:
    of = layer()
    weights = {"a": rounded(of, lb.uniform_grid(of.weight, 2))}
    with pytest.raises(UnsupportedProblemError, match=r"'a\.signs'"):
        lb.score(checkpoint(weights, {"a.signs": np.ones(6)}), [of], jobs=1)
    assert len(lb.score(checkpoint(weights, {"a.bias": np.ones(3)}), [of], jobs=1)) == 1


# --- files and the command -----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A GPTQ file and a capture of two layers."""
    layers = [layer("model.layers.0.mlp.up_proj", 32, 32), layer("model.layers.0.mlp.down_proj", 32, 32, seed=1)]
    tensors: dict[str, Any] = {}
    for of in layers:
        grid = lb.uniform_grid(of.weight, 2)
        grid = lb.Grid(grid.codes, grid.scale.astype(np.float16), 0.0, 32)
        tensors |= {f"{of.name}.{part}": value for part, value in gptq.tensors(rounded(of, grid)).items()}
    (tmp_path / "model").mkdir()
    write_tensors(tmp_path / "model" / "model.safetensors", tensors, {})
    about = {"quantization_config": {"quant_method": "gptq", "bits": 2, "group_size": -1, "sym": True}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(about), encoding="utf-8")
    lb.save_layers(tmp_path / "capture.safetensors", layers)
    return tmp_path / "model", tmp_path / "capture.safetensors"


def test_the_command(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="draws a picture")
    model, capture = files
    out, plot = tmp_path / "score.json", tmp_path / "score.svg"
    limits = ["--channels", "3", "--node-limit", "1", "--jobs", "1"]
    given = ["--checkpoint", str(model), "--input", str(capture), "--scale", "free", *limits]
    assert main(["score", *given, "--json", str(out), "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    assert "up_proj" in shown and "its own grid" in shown and "any scales" in shown and "--original" in shown
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [row["layer"] for row in record["layers"]] == [f"model.layers.0.mlp.{n}_proj" for n in ("up", "down")]
    own = record["layers"][0]["own"]
    assert own["words"] in shown and 0 <= own["at_least_percent"] <= own["at_most_percent"]
    assert record["layers"][0]["channels"] == [3] and len(own["lower_bounds"]) == 1
    assert record["options"]["scale"] == "free" and plot.read_text(encoding="utf-8").startswith("<?xml")


def test_the_command_on_one_layer(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, capture = files
    given = ["--checkpoint", str(model), "--input", str(capture), "--channels", "0", "--node-limit", "1"]
    assert main(["score", *given, "--layer", "up_proj", "--json", "-", "--jobs", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 1
    assert main(["score", *given, "--layer", "up_proj", "--all"]) == 2
    assert main(["score", *given, "--layer", "gate_proj"]) == 2
    assert main(["score", *given, "--scale", "best"]) == 2
    errors = capsys.readouterr().err
    assert "pass one of them" in errors and "gate_proj" in errors and "'free'" in errors and "Traceback" not in errors


def test_frames(files: tuple[Path, Path]) -> None:
    pytest.importorskip("pandas", reason="makes a data frame")
    model, capture = files
    frame = lb.score(model, capture, "up_proj", channels=[0], node_limit=1, jobs=1).to_frame()
    assert list(frame["layer"]) == ["model.layers.0.mlp.up_proj"] and frame["own_at_most_percent"].notna().all()
    assert frame["free_lower_bound"].isna().all()


def test_interruption_keeps_what_is_finished(files: tuple[Path, Path]) -> None:
    model, capture = files

    def stop(done: int, total: int, name: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    scores = lb.score(model, capture, channels=[0], total_time=0.1, jobs=1, progress=stop)
    assert scores.interrupted and len(scores) == 1


def test_runs_read_quantized_checkpoints(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, capture = files
    options: dict[str, Any] = {"bits": 2, "methods": [], "time_limit": 0.0, "jobs": 1, "parallel": "threads"}
    run = lb.run(capture, out=tmp_path / "run", weights={"file": str(model)}, **options)
    decoded = lb.load_checkpoint(model)
    for entry in run.entries:
        of = lb.load_layers(capture)[entry.layer.name]
        d = decoded[entry.layer.name].weight - of.matrix
        want = np.einsum("ij,jk,ik->i", d, of.gram[0], d)
        np.testing.assert_allclose(entry.methods["file"].errors, want, rtol=1e-9)


def test_a_layer_that_cannot_be_read_does_not_take_the_others_with_it() -> None:
    one, two = layer("one"), layer("two", seed=2)
    made = checkpoint({of.name: rounded(of, lb.uniform_grid(of.weight, 2)) for of in (one, two)})
    read = made._reader.weight

    def weight(name: str) -> lb.QuantizedWeight:
        if name == "one":
            raise FileFormatError("its codes are damaged")
        return read(name)

    made._reader.weight = weight  # type: ignore[method-assign]
    scores = lb.score(made, [one, two], node_limit=1, jobs=1)
    assert [s.layer for s in scores] == ["two"] and scores.refused == {"one": "layer 'one': its codes are damaged"}
    with pytest.raises(UnsupportedProblemError, match="damaged"):
        lb.score(made, [one, two], "one", node_limit=1, jobs=1)
