"""Ranges against slow versions of themselves, written from their descriptions, and on degenerate layers."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.main import main
from layerbounds.comparison.compare import comparison_problems
from layerbounds.exceptions import InputError
from layerbounds.problems.gram_range import fitted_grid, gram_grid
from layerbounds.problems.grids import Granularity
from layerbounds.problems.ranges.registry import RANGES

KINDS = [(name, symmetric) for name, rule in RANGES.items() for symmetric in (True, False)
         if ("symmetric" if symmetric else "asymmetric") in rule.kinds]  # fmt: skip


@pytest.fixture
def inputs(rng: np.random.Generator) -> Float:
    x = np.maximum(rng.normal(size=(60, 10)) @ rng.normal(size=(10, 10)), 0.0)
    x[:, 4] = 0.0
    return x


@pytest.fixture
def layer(rng: np.random.Generator, inputs: Float) -> lb.Layer:
    """Three channels of ten correlated inputs, one of them dead."""
    return lb.Layer.from_activations(rng.normal(size=(3, 10)), inputs)


def blocks(layer: lb.Layer, granularity: Granularity) -> list[tuple[list[int], list[int], Float]]:
    """Channels, inputs and weights that share a scale."""
    out, n = layer.matrix.shape
    if granularity == "tensor":
        return [(list(range(out)), list(range(n)), layer.matrix.ravel())]
    size = n if granularity == "channel" else int(granularity)
    return [
        ([c], list(range(s, min(s + size, n))), layer.matrix[c, s : s + size])
        for c in range(out)
        for s in range(0, n, size)
    ]


def check(grid: lb.Grid, channels: list[int], inputs: list[int], scale: float, zero: float = 0.0) -> None:
    for c in channels:
        np.testing.assert_allclose(grid.scale[c, grid.group[inputs]], scale, rtol=1e-12)
        np.testing.assert_allclose(grid.zero_point[c, grid.group[inputs]], zero, rtol=1e-9, atol=1e-12)


def rounded(w: float, scale: float, zero: float, low: float, high: float) -> float:
    """A weight on a uniform grid."""
    return scale * (min(max(round(w / scale + zero), low), high) - zero)


def rtn_error(layer: lb.Layer, grid: lb.Grid) -> Float:
    deviation = grid.nearest(layer.target) - layer.target
    errors = [d @ layer.channel_gram(c) @ d for c, d in enumerate(deviation)]
    return np.array(errors) + layer.constant


# --- rules of weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq(layer: lb.Layer, bits: int, symmetric: bool, granularity: Granularity) -> None:
    grid = lb.uniform_grid(layer.weight, bits, symmetric, granularity, "gptq")
    top = 2**bits - 1
    for channels, inputs, w in blocks(layer, granularity):
        low, high = min(w.min(), 0.0), max(w.max(), 0.0)
        if symmetric:
            high = max(abs(low), high)
            low = -high if low < 0 else low
        zero = 2 ** (bits - 1) if symmetric else round(-low / ((high - low) / top))
        best = (math.inf, 0.0)
        for i in range(80):
            scale = (1 - i / 100) * (high - low) / top
            error = sum(abs(rounded(x, scale, zero, 0, top) - x) ** 2.4 for x in w)
            best = min(best, (error, -scale))
        check(grid, channels, inputs, -best[1], 0 if symmetric else zero)


def test_gptq_halves_the_range_of_rows_without_negative_weights() -> None:
    # max|w|/(2^b − 1) and shares of it: the codes end at half of the weights' range.
    grid = lb.uniform_grid([[0.0, 1.0, 2.0, 3.0]], 3, True, range="gptq")
    assert grid.scale[0, 0] == pytest.approx(3.0 / 7.0)


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_llama_cpp(layer: lb.Layer, bits: int, granularity: Granularity) -> None:
    grid = lb.uniform_grid(layer.weight, bits, True, granularity, "llama.cpp")
    half = 2 ** (bits - 1)
    for channels, inputs, w in blocks(layer, granularity):
        largest = max(w, key=abs)
        found = []
        for step in [0, *range(-9, 10)]:
            q = [min(max(round(-(half + 0.1 * step) / largest * x), -half), half - 1) for x in w]
            product = sum(x**2 * x * k for x, k in zip(w, q, strict=True))
            square = sum(x**2 * k * k for x, k in zip(w, q, strict=True))
            found.append((product**2 / square, product / square))
        quality = max(f[0] for f in found)
        scale = next(f[1] for f in found if f[0] >= quality * (1 - 1e-14))
        check(grid, channels, inputs, scale)
        assert np.sign(scale) == -np.sign(largest)


@pytest.mark.parametrize("size", [0.01, 1.0])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("bits", [2, 4])
def test_hqq(layer: lb.Layer, bits: int, granularity: Granularity, size: float) -> None:
    layer = lb.Layer(size * layer.weight, layer.gram)
    grid = lb.uniform_grid(layer.weight, bits, range="hqq", granularity=granularity)
    top = 2**bits - 1
    parts = blocks(layer, granularity)
    scales = [(w.max() - w.min()) / top for *_, w in parts]
    zeros = [-w.min() / s for (*_, w), s in zip(parts, scales, strict=True)]
    if bits == 4:
        zeros = [float(round(z)) for z in zeros]
    beta, before = 10.0, math.inf
    for _ in range(20):
        everything = []
        for k, (_, _, w) in enumerate(parts):
            total = 0.0
            for x in w:
                q = min(max(round(x / scales[k] + zeros[k]), 0), top)
                r = x - scales[k] * (q - zeros[k])
                e = math.copysign(max(abs(r) - abs(r) ** -0.3 / beta, 0.0), r) if r else 0.0
                total += q - (x - e) / scales[k]
                everything.append(abs(r))
            zeros[k] = total / len(w)
        beta *= 1.01
        error = sum(everything) / len(everything)
        if error >= before:
            break
        before = error
    for (channels, inputs, _), scale, zero in zip(parts, scales, zeros, strict=True):
        check(grid, channels, inputs, scale, zero)
    assert np.any(grid.zero_point != np.rint(grid.zero_point))


# --- rules of layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel", 5])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(layer: lb.Layer, inputs: Float, bits: int, symmetric: bool, granularity: Granularity) -> None:
    # On the inputs themselves, without a Gram matrix.
    grid = gram_grid(layer, bits, symmetric=symmetric, granularity=granularity, range="awq")
    half, top = 2 ** (bits - 1), 2**bits - 1
    for channels, own, w in blocks(layer, granularity):
        best = (math.inf, 0.0, 0.0)
        for i in range(10):
            limit = max(abs(w)) * (1 - i / 20)
            clipped = w.clip(-limit, limit)
            if symmetric:
                scale, zero, low, high = limit / (half - 1), 0, -half, half - 1
            else:
                scale = (clipped.max() - clipped.min()) / top
                zero, low, high = min(max(-round(clipped.min() / scale), 0), top), 0, top
            levels = np.array([scale * (min(max(round(x / scale) + zero, low), high) - zero) for x in clipped])
            deviation = (levels - w).reshape(len(channels), len(own))
            error = float(((inputs[:, own] @ deviation.T) ** 2).sum())
            if error < best[0] * (1 - 1e-12):
                best = (error, scale, zero)
        check(grid, channels, own, best[1], best[2])


def all_breakpoints(layer: lb.Layer, channels: list[int], codes: Float) -> float:
    """Least error of round-to-nearest over all scales of some channels: codes of each interval by rounding anew."""
    middles = (codes[1:] + codes[:-1]) / 2
    breaks = {float(w / m) for c in channels for w in layer.matrix[c] for m in middles if w * m > 0}
    ends = [0.0, *sorted(breaks), math.inf]
    best = math.inf
    for low, high in pairwise(ends):
        inside = 2 * low if high == math.inf else (low + high) / 2
        inside = inside or 1.0
        square = product = 0.0
        for c in channels:
            gram = layer.channel_gram(c)
            q = codes[[int(np.argmin(np.abs(codes - w / inside))) for w in layer.matrix[c]]]
            square += float(q @ gram @ q)
            product += float(q @ gram @ layer.matrix[c])
        if square > 0:
            scale = min(max(product / square, low), high)
            best = min(best, scale * scale * square - 2 * scale * product)
    return best + float(layer.energy()[channels].sum())


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("what", ["2 bits", "4 bits", "nf4", "ternary", "binary", "mirrored"])
def test_piso_is_exact(rng: np.random.Generator, layer: lb.Layer, what: str, tensor: bool) -> None:
    if what == "mirrored":
        # Two groups of a grouped convolution, and codes that do not hold 0.
        layer = lb.Layer(rng.normal(size=(4, 10)), np.stack([layer.gram[0], layer.gram[0][::-1, ::-1]]))
        choice: dict[str, object] = {"codebook": [-3.0, -1.0, 0.5, 0.75]}
    else:
        choice = {"bits": int(what[0])} if what[0].isdigit() else {"codebook": what}
    grid = gram_grid(layer, granularity="tensor" if tensor else "channel", range="piso", **choice)  # type: ignore[arg-type]
    errors = rtn_error(layer, grid)
    if tensor:
        assert errors.sum() == pytest.approx(all_breakpoints(layer, list(range(len(errors))), grid.codes), rel=1e-9)
        return
    for c, error in enumerate(errors):
        assert error == pytest.approx(all_breakpoints(layer, [c], grid.codes), rel=1e-9)


@pytest.mark.parametrize("granularity", ["channel", 3, "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_scale_of_a_fine_list_beats_piso(layer: lb.Layer, symmetric: bool, granularity: Granularity) -> None:
    grid = gram_grid(layer, 3, symmetric=symmetric, granularity=granularity, range="piso")
    errors = rtn_error(layer, grid)
    before = fitted_grid(layer, 3, symmetric=symmetric, granularity=granularity)
    total = granularity == "tensor"
    assert np.all(
        (errors.sum() if total else errors) <= (rtn_error(layer, before).sum() if total else rtn_error(layer, before))
    )
    np.testing.assert_array_equal(grid.zero_point, before.zero_point)
    for k in range(1 if total else grid.scale.shape[1]):
        for factor in np.geomspace(0.2, 5.0, 100):
            scale = grid.scale.copy()
            scale[:, k] *= factor
            trial = rtn_error(layer, lb.Grid(grid.codes, scale, grid.zero_point, 10, group=grid.group))  # type: ignore[arg-type]
            if total:
                assert trial.sum() >= errors.sum() * (1 - 1e-9)
            else:
                assert np.all(trial >= errors * (1 - 1e-9))


def test_targets_that_are_not_the_weights(rng: np.random.Generator, inputs: Float) -> None:
    seen = inputs + 0.3 * rng.normal(size=inputs.shape)
    layer = lb.Layer.from_activations(rng.normal(size=(3, 10)), inputs, compressed_inputs=seen)
    errors = rtn_error(layer, gram_grid(layer, 3, range="piso"))
    for factor in (0.5, 0.8, 1.0, 1.3, 2.0):
        grid = lb.uniform_grid(layer.weight, 3)
        scaled = lb.Grid(grid.codes, factor * grid.scale, 0.0, 10)
        assert np.all(errors <= rtn_error(layer, scaled) * (1 + 1e-12))


# --- all rules -------------------------------------------------------------------------------------------------------


def degenerate(rng: np.random.Generator) -> dict[str, lb.Layer]:
    weight = rng.normal(size=(3, 6))
    x = rng.normal(size=(30, 6))
    gram = x.T @ x / 30
    zero = weight.copy()
    zero[1] = 0.0
    return {
        "a row of zeros": lb.Layer(zero, gram),
        "only zeros": lb.Layer(np.zeros((2, 6)), gram),
        "one input": lb.Layer(weight[:, :1], gram[:1, :1]),
        "equal weights": lb.Layer(np.full((2, 6), -0.7), gram),
        "one sign": lb.Layer(np.abs(weight), gram),
        "dead": lb.Layer(weight, np.zeros((6, 6))),
        "proportional columns": lb.Layer(weight, np.outer(np.arange(1.0, 7.0), np.arange(1.0, 7.0))),
        "tiny": lb.Layer(weight * 1e-30, gram * 1e-30),
        "huge": lb.Layer(weight * 1e30, gram * 1e20),
        "an outlier": lb.Layer(np.where(np.arange(6) == 2, 1e9, weight), gram),
    }


@pytest.mark.parametrize(("name", "symmetric"), KINDS)
def test_degenerate_layers(rng: np.random.Generator, name: str, symmetric: bool) -> None:
    for what, layer in degenerate(rng).items():
        for granularity in ("channel", 4, "tensor"):
            grid = fitted_grid(layer, 3, symmetric=symmetric, granularity=granularity, range=name)  # type: ignore[arg-type]
            assert np.all(np.isfinite(grid.scale)) and np.all(grid.scale != 0), what
            assert grid.label.endswith(f", {name}")
            # A level is no farther from a weight than 0 is, or the range clips within the weights' size.
            deviation = np.abs(grid.nearest(layer.matrix) - layer.matrix)
            assert np.max(deviation) <= np.max(np.abs(layer.matrix), initial=0.0) * (1 + 1e-9), what


@pytest.mark.parametrize(("name", "symmetric"), [kind for kind in KINDS if kind[0] != "hqq"])
def test_scales_follow_the_weights(layer: lb.Layer, name: str, symmetric: bool) -> None:
    for granularity in ("channel", 4, "tensor"):
        grids = [
            fitted_grid(scaled, 3, symmetric=symmetric, granularity=granularity, range=name)  # type: ignore[arg-type]
            for scaled in (layer, lb.Layer(layer.weight * 2.0**40, layer.gram * 2.0**-20))
        ]
        np.testing.assert_allclose(grids[1].scale, grids[0].scale * 2.0**40, rtol=1e-12)
        np.testing.assert_array_equal(grids[1].zero_point, grids[0].zero_point)


@pytest.mark.parametrize("name", list(RANGES))
def test_real_layers(reference_data: Path, name: str) -> None:
    whole = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer1.0.conv1"]
    layer = lb.Layer(whole.weight[:2], whole.gram[0])
    problem = lb.quantization_problem(layer, 4, range=name, granularity=48)
    assert lb.evaluate(problem, lb.run_heuristic("gptq", problem)).error.sum() < 0.2 * layer.energy().sum()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"bits": 3, "range": "hqq", "symmetric": True},
            "range 'hqq' fits zero points .* choose mse, minmax, gram, piso",
        ),
        ({"bits": 3, "range": "llama.cpp", "symmetric": False}, "range 'llama.cpp' has no zero point"),
        (
            {"bits": 1, "range": "gptq"},
            "range 'gptq' fits uniform grids of at least 2 bits only; .* mse, minmax, gram, piso",
        ),
        ({"codebook": "nf4", "range": "awq"}, "range 'awq' fits uniform grids"),
        (
            {"codebook": "mxfp4", "range": "piso"},
            "powers of two, those of mxfp4; for this grid choose mse, minmax, gram",
        ),
        ({"bits": 3, "range": "all"}, "range is 'all'; choose 'mse'"),
        ({"bits": 3, "symmetric": "no"}, "symmetric is 'no'"),
    ],
)
def test_what_ranges_cannot_do_is_said(layer: lb.Layer, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fitted_grid(layer, **arguments)  # type: ignore[arg-type]


def test_ranges_of_layers_need_one(layer: lb.Layer) -> None:
    for name in ("gram", "piso", "awq"):
        with pytest.raises(InputError, match=f"range '{name}' is fitted to the output error of a layer"):
            lb.uniform_grid(layer.weight, 3, range=name)
        problem = lb.quantization_problem(layer, 3, range=name)
        np.testing.assert_array_equal(problem.grid.scale, gram_grid(layer, 3, range=name).scale)
    # Left out, the zero point is what the range is for.
    assert "asymmetric" in lb.quantization_problem(layer, 3, range="hqq").label


# --- compare ---------------------------------------------------------------------------------------------------------


def ranges(layer: lb.Layer, **options: object) -> list[str]:
    problems = comparison_problems(layer, **options)  # type: ignore[arg-type]
    return [problem.label.rpartition(", ")[2] for problem in problems]


def test_all_ranges_are_those_that_fit(layer: lb.Layer) -> None:
    both = set(RANGES)
    assert set(ranges(layer, bits=3, range="all")) == both
    assert set(ranges(layer, bits=3, range="all", symmetric=True)) == both - {"hqq"}
    assert set(ranges(layer, bits=3, range=["all"], symmetric=False)) == both - {"llama.cpp"}
    assert ranges(layer, codebook="nf4", range=["piso", "all"])[0] == "piso"
    assert set(ranges(layer, codebook="mxfp4", range="all")) <= {"mse", "minmax", "gram"}
    assert ranges(layer, bits=3) == ["mse"]
    assert ranges(layer, bits=[2, 3], range=["hqq", "mse"]) == ["hqq", "mse", "hqq", "mse"]
    with pytest.raises(InputError, match="range is 'none'"):
        ranges(layer, bits=3, range=["all", "none"])


def test_compare_has_each_range_in_its_rows(layer: lb.Layer) -> None:
    names = list(RANGES)
    rows = lb.compare(layer, 2, range=names, methods=["rtn"], jobs=1)
    assert len(rows.solutions) == len(names)
    rtn = {row["grid"].rpartition(", ")[2]: row for row in rows if row["method"] == "rtn"}
    assert set(rtn) == set(names)
    for row in rtn.values():
        assert row["lower_bound"] <= row["error"]
    symmetric = [rtn[name]["error"] for name in names if name not in ("hqq", "llama.cpp")]
    assert rtn["piso"]["error"] <= min(symmetric) * (1 + 1e-12)
    best = {name: row["upper_bound"] for name, row in rtn.items()}
    assert best["gram"] <= min(best[name] for name in ("mse", "minmax", "gptq", "awq", "piso")) * (1 + 1e-9)


def test_the_command_line_compares_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "rows.json"
    every = ",".join(RANGES)
    common = ["--layer", "conv1", "--bits", "2", "--channels", "0:1", "--methods", "rtn", "--jobs", "1"]
    seen = []
    for asked in (every, "all"):
        assert main(["compare", *common, "--range", asked, "--json", str(where), "--time-limit", "1"]) == 0
        assert capsys.readouterr().err == ""
        records = json.loads(where.read_text())["records"]
        seen.append({record["grid"].rpartition(", ")[2] for record in records})
    assert seen[0] == seen[1] == set(RANGES)
    assert main(["compare", *common, "--range", "hqq", "--symmetric"]) == 2
    assert "range 'hqq' fits zero points" in capsys.readouterr().err


def test_the_command_line_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ranges", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["ranges"]
    assert [row["name"] for row in rows] == list(RANGES) and all(row["source"] and row["summary"] for row in rows)
    assert main(["ranges"]) == 0
    assert "2606.10890" in capsys.readouterr().out


def test_the_documents_describe_each() -> None:
    page = Path(__file__).parent.parent / "docs" / "grids.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in RANGES if f"\n| `{name}`" not in text] == []
