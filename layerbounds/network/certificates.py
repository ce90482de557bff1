"""Certificates of a run: one file for each layer at each choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.layers.layer import Layer
from layerbounds.names import file_part
from layerbounds.network.entries import Entry
from layerbounds.network.folder import RunFolder
from layerbounds.solution import Solution, load_solution

_ARRAYS = ("lower_bound", "upper_bound", "weights", "claimed_lower_bound", "energy", "seconds", "nodes")
_LISTS = ("channels", "sets", "status", "bound_kind", "lower_backend", "upper_backend", "trace")


def certificate_path(folder: Path, entry: Entry) -> Path:
    """Where the certificate of an entry goes."""
    safe = file_part(f"{entry.layer.name}-{entry.choice.name}", 100)
    return folder / f"{safe}-{entry.fingerprint[:8]}.safetensors"


def entry_solution(folder: RunFolder, entry: Entry, layer: Layer) -> Solution:
    """What a run knows of a layer at a choice, as one solution.

    Parameters
    ----------
    folder : RunFolder
    entry : Entry
        With first bounds.
    layer : Layer
    """
    return _joined([load_solution(folder.record(entry, chunk), layer=layer) for chunk in range(len(entry.chunks))])


def write_certificate_of(folder: RunFolder, entry: Entry, layer: Layer, path: Path) -> None:
    """Write the certificate of an entry; it is checked before it is written."""
    entry_solution(folder, entry, layer).save_certificate(path, by_hash=True)


def _joined(parts: Sequence[Solution]) -> Solution:
    """Solutions of one problem as one."""
    if len(parts) == 1:
        return parts[0]
    values: dict[str, Any] = dict(vars(parts[0]))
    for name in _ARRAYS:
        values[name] = np.concatenate([getattr(part, name) for part in parts])
    for name in _LISTS:
        values[name] = [entry for part in parts for entry in getattr(part, name)]
    values["notes"] = {channel: note for part in parts for channel, note in part.notes.items()}
    values["preparation_seconds"] = sum(part.preparation_seconds for part in parts)
    values["interrupted"] = any(part.interrupted for part in parts)
    values["certified_trace"] = all(part.certified_trace for part in parts)
    return Solution(**{**values, "problem": parts[0].problem, "evidence": []})
