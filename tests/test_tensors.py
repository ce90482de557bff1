"""Weights of real models: ratios against direct computation, files, the published table, the commands."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from safetensors.numpy import save_file
from scipy.interpolate import PchipInterpolator

from layerbounds import theory
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.theory.tensors import (
    TensorRow,
    analyse_tensor,
    by_kurtosis,
    read_table,
    read_weights,
    summarise,
    write_table,
)

#: Shares of the published table for which quantization is better, at 2 to 8 bits.
PUBLISHED = [73.9, 83.8, 89.2, 92.9, 94.3, 94.9, 94.3]


def test_ratios_by_hand(rng: np.random.Generator) -> None:
    weight = rng.standard_t(5, size=(8, 4, 3, 3)).astype(np.float32)
    rows = analyse_tensor(weight, (2, 4), tensor="w", model="m")
    flat = weight.astype(np.float64).ravel()
    power = float(np.mean(flat**2))
    for row in rows:
        half = 2 ** (row.bits - 1)
        errors = []
        for factor in np.linspace(0.3, 1.1, 81):
            s = factor * np.abs(flat).max() / (half - 0.5)
            errors.append(float(np.mean((flat - s * np.clip(np.rint(flat / s), -half, half - 1)) ** 2)))
        assert row.quantization_sqnr_db == pytest.approx(10 * math.log10(power / min(errors)), abs=1e-9)
        pruned = len(flat) - int(row.bits / 16 * len(flat))
        error = float(np.sum(np.sort(flat**2)[:pruned])) / len(flat)
        assert row.pruning_sqnr_db == pytest.approx(10 * math.log10(power / error), abs=1e-9)
        assert row.excess_kurtosis == pytest.approx(float(scipy.stats.kurtosis(flat)), rel=1e-9)
    scaled = analyse_tensor(weight.astype(np.float64) * 1e-180, (2, 4), tensor="w")
    for row, tiny in zip(rows, scaled, strict=True):
        assert tiny.pruning_sqnr_db == pytest.approx(row.pruning_sqnr_db, abs=1e-9)
        assert tiny.quantization_sqnr_db == pytest.approx(row.quantization_sqnr_db, abs=1e-9)


def test_normal_weights_match_theory(rng: np.random.Generator) -> None:
    (row,) = analyse_tensor(rng.normal(size=(400, 500)), (4,), tensor="w")
    # The expected errors of the normal distribution (docs/theory.md), up to sampling and 81 scales.
    assert row.quantization_sqnr_db == pytest.approx(19.26, abs=0.1)
    assert row.pruning_sqnr_db == pytest.approx(5.58, abs=0.05)


def test_who_is_better() -> None:
    def row(quantized: float, pruned: float) -> TensorRow:
        return TensorRow("m", "w", 2, 0.0, quantized, pruned)

    assert row(5, 4).better == "quantization" and row(4, 5).better == "pruning"
    assert row(5, math.inf).better == "pruning" and row(math.inf, math.inf).better == "pruning"
    assert row(5, 5).better == "equal" and row(math.nan, math.nan).better == "undefined"
    (entry,) = summarise([row(5, 4), row(4, 5), row(5, math.inf), row(math.nan, math.nan)])
    assert (entry.quantization, entry.pruning, entry.undefined, entry.infinite) == (1, 2, 1, 1)
    assert entry.quantization_percent == pytest.approx(100 / 3)
    zeros = analyse_tensor(np.zeros((3, 3)), (2,), tensor="zeros")
    assert zeros[0].better == "undefined"
    sparse = np.zeros((4, 8))
    sparse[0, 0] = 1.0
    assert math.isinf(analyse_tensor(sparse, (2,), tensor="sparse")[0].pruning_sqnr_db)


def test_kurtosis_classes() -> None:
    rows = [TensorRow("m", str(k), 2, k, 5.0, 4.0) for k in (-1.2, 1.0, 9.9, 10.0, 1e4, math.nan)]
    classes = {name: sum(s.tensors for s in shares) for name, shares in by_kurtosis(rows)}
    assert classes == {"below 1": 1, "1 to 10": 2, "10 to 100": 1, "from 100": 1, "unknown": 1}


def test_files_with_every_type(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(4, 6)).astype(np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "w.safetensors"
    save_file(
        {
            "a.weight": values,
            "b.weight": values.astype(np.float16),
            "c.bias": values[0].copy(),
            "d.index": np.arange(6).reshape(2, 3),
            "layer.gram": np.eye(6),
        },
        path,
    )
    assert [name for name, _ in read_weights(path)] == ["a.weight", "b.weight"]
    # A bfloat16 file, written by hand: NumPy has no such type.
    header = {"e.weight": {"dtype": "BF16", "shape": [4, 6], "data_offsets": [0, upper.nbytes]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + upper.tobytes())
    ((name, array),) = read_weights(path)
    assert name == "e.weight" and np.allclose(array, values, rtol=2**-7)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FileFormatError, match="truncated"):
        list(read_weights(path))


def test_tables_round_trip(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = analyse_tensor(rng.normal(size=(4, 6)), tensor="w", model="m")
    rows.append(TensorRow("m", "sparse", 2, math.nan, 3.0, math.inf))
    path = tmp_path / "t.csv"
    write_table(path, rows)
    back = read_table(path)
    assert back[:-1] == rows[:-1] and math.isinf(back[-1].pruning_sqnr_db) and math.isnan(back[-1].excess_kurtosis)
    path.write_text("tensor,bits\nw,2\n")
    with pytest.raises(FileFormatError, match="no column 'excess_kurtosis'"):
        read_table(path)
    path.write_text("tensor,bits,excess_kurtosis,quantization_sqnr_db,pruning_sqnr_db\nw,two,1,2,3\n")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_table(path)
    broken = tmp_path / "t.csv.gz"
    broken.write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_table(broken)
    with pytest.raises(InputError, match="two dimensions"):
        analyse_tensor([1.0, 2.0], tensor="v")


@pytest.mark.slow
def test_published_table(reference_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = reference_data / "kuzmin2023_model_zoo_sqnr.csv.gz"
    rows = read_table(source)
    shares = summarise(rows)
    assert len(rows) == 18_928 and sum(s.infinite for s in shares) == 323
    assert [round(s.quantization_percent, 1) for s in shares] == PUBLISHED
    record, picture = tmp_path / "t.json", tmp_path / "t.svg"
    assert main(["tensors", str(source), "--json", str(record), "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "323 of 18928" in text and all(str(value) in text for value in PUBLISHED)
    content = json.loads(record.read_text())
    assert [round(s["quantization_percent"], 1) for s in content["summary"]] == PUBLISHED
    assert len(content["rows"]) == 18_928
    drawn = picture.read_text()
    assert "quantization SNR, dB" in drawn and "INT2 vs 87.5 % sparsity" in drawn and len(drawn) < 1_000_000


def test_published_natural_zeros(reference_data: Path) -> None:
    """The density of equal storage with natural zeros is the one of the published table.

    Its pruning ratios at seven sparsities of a tensor are interpolated at that density.
    """
    tensors: dict[str, dict[int, dict[str, str]]] = {}
    with gzip.open(reference_data / "kuzmin2023_model_zoo_sqnr.csv.gz", "rt") as handle:
        for record in csv.DictReader(handle):
            if record["model"] == "resnet50":
                tensors.setdefault(record["tensor"], {})[int(record["bits"])] = record
    errors = []
    for records in tensors.values():
        ratios = np.array([float(records[b]["pruning_sqnr_db"]) for b in range(2, 9)])
        if not np.all(np.isfinite(ratios)):
            continue
        at = PchipInterpolator(np.arange(2, 9) / 16, ratios)
        for bits in range(4, 9):
            density = theory.equal_density(bits, zeros=float(records[bits]["quantized_zero_fraction"]))
            if density >= 2 / 16:
                errors.append(float(at(density)) - float(records[bits]["pruning_sqnr_db_at_equal_stored_values"]))
    assert len(errors) > 100
    assert np.median(np.abs(errors)) < 0.02 and np.percentile(np.abs(errors), 95) < 0.1


def test_command_on_weights(tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    source, table, picture = tmp_path / "net.safetensors", tmp_path / "net.csv", tmp_path / "net.png"
    save_file({"conv.weight": rng.normal(size=(6, 3, 3, 3)), "fc.weight": rng.standard_t(2, size=(10, 20))}, source)
    assert main(["tensors", str(source), "--bits", "2,4", "--csv", str(table), "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "conv.weight" in text and "fc.weight" in text and "100.0" in text
    assert len(read_table(table)) == 4 and picture.stat().st_size > 1000
    assert main(["tensors", str(table), "--bits", "2"]) == 0
    assert main(["tensors", str(source), "--json", "-"]) == 0
    printed = capsys.readouterr().out
    assert len(json.loads(printed[printed.index("{") :])["rows"]) == 14


@pytest.mark.parametrize(
    "arguments",
    [
        ["tensors", "missing.safetensors"],
        ["tensors", "missing.csv"],
        ["tensors", "{empty}"],
        ["theory", "--distribution", "cauchy"],
        ["theory", "--df", "3"],
        ["theory", "--distribution", "student-t", "--df", "2", "--quantile", "0"],
        ["theory", "--mask", "zip"],
        ["theory", "--bits", "1"],
        ["theory", "--plot", "x.bmp"],
    ],
)
def test_bad_input_is_one_line(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.safetensors"
    save_file({"bias": np.zeros(3)}, empty)
    assert main([a.replace("{empty}", str(empty)) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_theory_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "f1.svg", tmp_path / "f2.svg"
    assert main(["theory", "--plot", str(first), "--bits", "3,4"]) == 0
    text = capsys.readouterr().out
    assert "19.26" in text and "5.58" in text and "quantization is better at all" in text
    assert all(label in first.read_text() for label in ("squared error × density", "SNR, dB", "75 % at zero"))
    # Few of the truncations are enough to see that the figure is drawn.
    monkeypatch.setattr("layerbounds.cli.theory.TAIL_QUANTILES", (1e-2, 1e-4))
    assert main(["theory", "--distribution", "student-t", "--bits", "2:4", "--plot", str(second)]) == 0
    assert all(label in second.read_text() for label in ("excess kurtosis", "pruning SNR, dB", "pruning is better"))
    capsys.readouterr()
    assert main(["theory", "--bits", "4", "--mask", "bitmap", "--natural-zeros", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    (point,) = record["points"]
    assert 16 * (1 - point["sparsity"]) + 1 == pytest.approx(4 * (1 - point["quantized_zeros"]) + 1)
    assert record["crossings"] == [] and record["mask"] == "bitmap"
