"""Quantization against magnitude pruning of the weights themselves, for every tensor of a model.

After Kuzmin et al., "Pruning vs Quantization: Which is Better?" (NeurIPS 2023), section 3.3: no inputs, no layer error.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerbounds.arrays import as_float64
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.files import atomic_path
from layerbounds.layers.tensor_files import WIDE_FLOATS, open_tensors
from layerbounds.problems.fitting import uniform_grid
from layerbounds.theory.families import empirical
from layerbounds.theory.pruning import pruning_error
from layerbounds.theory.quantization import decibels

COLUMNS = ("model", "tensor", "bits", "excess_kurtosis", "quantization_sqnr_db", "pruning_sqnr_db")
#: Tensors of layer files that are no weights.
_NO_WEIGHTS = (".gram", ".target", ".input_mean")
#: Limits of the kurtosis classes of a summary.
KURTOSIS_CLASSES = (1.0, 10.0, 100.0)


@dataclass(frozen=True)
class TensorRow:
    """Both methods on one weight tensor at one compression.

    Attributes
    ----------
    model, tensor : str
    bits : int
    excess_kurtosis : float
        NaN where unknown.
    quantization_sqnr_db : float
        Symmetric uniform quantization with one scale for the tensor, range "mse" of `layerbounds.uniform_grid`.
    pruning_sqnr_db : float
        Magnitude pruning at sparsity 1 − bits/16; infinite where only zeros are pruned. Both are NaN for a tensor of
        zeros.
    """

    model: str
    tensor: str
    bits: int
    excess_kurtosis: float
    quantization_sqnr_db: float
    pruning_sqnr_db: float

    @property
    def better(self) -> str:
        """``quantization``, ``pruning``, ``equal`` or ``undefined``; pruning where it loses nothing at all."""
        quantized, pruned = self.quantization_sqnr_db, self.pruning_sqnr_db
        if math.isnan(quantized) or math.isnan(pruned):
            return "undefined"
        if math.isinf(pruned):
            return "pruning"
        return "equal" if quantized == pruned else "quantization" if quantized > pruned else "pruning"


@dataclass(frozen=True)
class Share:
    """Who wins among some tensors.

    Attributes
    ----------
    bits : int
    tensors, quantization, pruning, equal, undefined, infinite : int
        Numbers of tensors; ``infinite`` of those counted for pruning have an infinite pruning SNR.
    """

    bits: int
    tensors: int
    quantization: int
    pruning: int
    equal: int
    undefined: int
    infinite: int

    @property
    def quantization_percent(self) -> float:
        """Share of the tensors with defined ratios for which quantization is better; NaN without any."""
        defined = self.tensors - self.undefined
        return 100.0 * self.quantization / defined if defined else math.nan


def analyse_tensor(
    weight: ArrayLike, bits: Iterable[int] = range(2, 9), *, tensor: str, model: str = ""
) -> list[TensorRow]:
    """Kurtosis and both signal-to-noise ratios of a weight tensor.

    Parameters
    ----------
    weight : array_like
        At least two dimensions.
    bits : iterable of int
        2 to 8.
    tensor, model : str
        Names for the rows.

    Returns
    -------
    list of TensorRow
        One for each number of bits.
    """
    array = as_float64(weight, f"tensor {tensor!r}")
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"tensor {tensor!r} has shape {array.shape}; pass a weight of at least two dimensions.")
    matrix = array.reshape(array.shape[0], -1)
    # A power of 2 keeps squares of tiny and huge weights in range, and changes no ratio.
    peak = float(np.max(np.abs(matrix)))
    if peak > 0:
        matrix = np.ldexp(matrix, -math.frexp(peak)[1])
    samples = empirical(matrix, tensor)
    rows = []
    for b in bits:
        if not 2 <= b <= 8:
            raise InputError(f"bits is {b}; choose an integer from 2 to 8.")
        grid = uniform_grid(matrix, b, granularity="tensor", range="mse")
        scale, half = float(grid.scale[0, 0]), 2.0 ** (b - 1)
        error = float(np.mean((matrix - scale * np.clip(np.rint(matrix / scale), -half, half - 1)) ** 2))
        rows.append(
            TensorRow(
                model,
                tensor,
                int(b),
                samples.excess_kurtosis,
                decibels(samples.power, error),
                pruning_error(samples, 1.0 - b / 16.0).snr_db,
            )
        )
    return rows


def read_weights(path: str | os.PathLike[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Weight tensors of a file one by one: floating point of at least 16 bits, at least two dimensions.

    Parameters
    ----------
    path : path-like
        What `layerbounds.layers.tensor_files.open_tensors` reads.

    Raises
    ------
    FileFormatError
        If the file cannot be read.
    """
    with open_tensors(path) as file:
        for name in sorted(file.names):
            entry = file.entry(name)
            if len(entry.shape) < 2 or 0 in entry.shape or entry.kind not in WIDE_FLOATS or name.endswith(_NO_WEIGHTS):
                continue
            yield name, file.read(name)


def read_table(path: str | os.PathLike[str]) -> list[TensorRow]:
    """Rows from a CSV file (``.csv`` or ``.csv.gz``) with the columns of `write_table`; others are ignored.

    An excess kurtosis below −2, which no numbers can have, is read as unknown.

    Raises
    ------
    FileFormatError
        If the file cannot be read or lacks a column.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
        text = (gzip.decompress(data) if source.suffix == ".gz" else data).decode("utf-8")
        with io.StringIO(text, newline="") as handle:
            reader = csv.DictReader(handle)
            missing = [c for c in COLUMNS[1:] if c not in (reader.fieldnames or ())]
            if missing:
                raise FileFormatError(f"{source} has no column {missing[0]!r}; a table has {', '.join(COLUMNS)}.")
            return [_row(record) for record in reader]
    except (OSError, EOFError, ValueError, TypeError, zlib.error, csv.Error) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{source} cannot be read as a table of tensors ({error}); check the file.") from error


def _row(record: dict[str, str]) -> TensorRow:
    kurtosis = float(record["excess_kurtosis"] or "nan")
    return TensorRow(
        record.get("model") or "",
        record["tensor"],
        int(record["bits"]),
        math.nan if kurtosis < -2 else kurtosis,
        float(record["quantization_sqnr_db"] or "nan"),
        float(record["pruning_sqnr_db"] or "nan"),
    )


def write_table(path: str | os.PathLike[str], rows: Sequence[TensorRow]) -> None:
    """Write rows as CSV, atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, column) for column in COLUMNS] for row in rows)


def summarise(rows: Iterable[TensorRow]) -> list[Share]:
    """Who wins at each number of bits.

    Parameters
    ----------
    rows : iterable of TensorRow

    Returns
    -------
    list of Share
        By rising bits.
    """
    by_bits: dict[int, list[TensorRow]] = {}
    for row in rows:
        by_bits.setdefault(row.bits, []).append(row)
    return [share(bits, by_bits[bits]) for bits in sorted(by_bits)]


def share(bits: int, rows: Sequence[TensorRow]) -> Share:
    """Who wins among given rows."""
    better = [row.better for row in rows]
    infinite = sum(math.isinf(row.pruning_sqnr_db) and b == "pruning" for row, b in zip(rows, better, strict=True))
    counts = [better.count(name) for name in ("quantization", "pruning", "equal", "undefined")]
    return Share(bits, len(rows), counts[0], counts[1], counts[2], counts[3], infinite)


def by_kurtosis(rows: Iterable[TensorRow]) -> list[tuple[str, list[Share]]]:
    """The summary apart for classes of excess kurtosis: below 1, 1 to 10, 10 to 100, from 100, unknown."""
    limits = (-math.inf, *KURTOSIS_CLASSES, math.inf)
    names = [f"below {limits[1]:g}"]
    names += [f"{low:g} to {high:g}" for low, high in itertools.pairwise(limits[1:-1])]
    names += [f"from {limits[-2]:g}", "unknown"]
    classes: list[list[TensorRow]] = [[] for _ in names]
    for row in rows:
        known = int(np.searchsorted(limits[1:-1], row.excess_kurtosis, "right"))
        place = len(names) - 1 if math.isnan(row.excess_kurtosis) else known
        classes[place].append(row)
    return [(name, summarise(members)) for name, members in zip(names, classes, strict=True) if members]
