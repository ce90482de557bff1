"""Tables of the weights of a model: each tensor, and who wins where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from layerbounds.report.tables import MISSING, _number, _table, _text, fixed, significant
from layerbounds.theory.tensors import TensorRow, by_kurtosis, summarise


def tensor_table(rows: Sequence[TensorRow], title: str) -> Table:
    """One row for each tensor: kurtosis, and quantization/pruning SNR at each number of bits.

    Parameters
    ----------
    rows : sequence of TensorRow
    title : str

    Returns
    -------
    rich.table.Table
    """
    bits = sorted({row.bits for row in rows})
    table = _table(f"{title}: quantization / pruning SNR in dB")
    _text(table, "tensor")
    _number(table, "kurtosis")
    for b in bits:
        _number(table, f"{b} bits")
    tensors: dict[tuple[str, str], dict[int, TensorRow]] = {}
    for row in rows:
        tensors.setdefault((row.model, row.tensor), {})[row.bits] = row
    for (model, tensor), found in tensors.items():
        kurtosis = next(iter(found.values())).excess_kurtosis
        cells = [_pair(found[b]) if b in found else MISSING for b in bits]
        table.add_row(f"{model} {tensor}".strip(), significant(kurtosis, 3), *cells)
    return table


def share_table(rows: Sequence[TensorRow]) -> Table:
    """Percentage of the tensors for which quantization is better, over all and by excess kurtosis.

    Parameters
    ----------
    rows : sequence of TensorRow

    Returns
    -------
    rich.table.Table
    """
    shares = summarise(rows)
    table = _table("tensors for which quantization is better, %")
    _text(table, "excess kurtosis")
    _number(table, "tensors")
    for entry in shares:
        _number(table, f"{entry.bits} bits")
    for name, group in [("all", shares), *by_kurtosis(rows)]:
        known = {entry.bits: entry for entry in group}
        cells = [fixed(known[s.bits].quantization_percent, 1) if s.bits in known else MISSING for s in shares]
        table.add_row(name, str(max(entry.tensors for entry in group)), *cells)
    return table


def notes(rows: Sequence[TensorRow]) -> list[str]:
    """What was counted how, where that matters."""
    shares = summarise(rows)
    infinite, undefined = sum(s.infinite for s in shares), sum(s.undefined for s in shares)
    equal = sum(s.equal for s in shares)
    lines = []
    if infinite:
        lines.append(
            f"{infinite} of {len(rows)} rows have an infinite pruning SNR, because the tensor has enough zeros; they "
            "count for pruning"
        )
    if equal:
        lines.append(f"{equal} rows are equal and count for neither")
    if undefined:
        lines.append(f"{undefined} rows of tensors of zeros are left out of the percentages")
    return lines


def tensor_record(rows: Sequence[TensorRow]) -> dict[str, Any]:
    """Everything, ready for JSON; an infinite SNR becomes None."""
    return {
        "rows": [{**dataclasses.asdict(row), "better": row.better} for row in rows],
        "summary": [
            {**dataclasses.asdict(entry), "quantization_percent": entry.quantization_percent}
            for entry in summarise(rows)
        ],
        "by_kurtosis": {
            name: {str(entry.bits): entry.quantization_percent for entry in group} for name, group in by_kurtosis(rows)
        },
    }


def _pair(row: TensorRow) -> str:
    return f"{fixed(row.quantization_sqnr_db, 1)} / {fixed(row.pruning_sqnr_db, 1)}"
