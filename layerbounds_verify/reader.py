"""The file: tensors and metadata, the layer, and what weights are allowed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds_verify.exact import RefusedError

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
#: The largest share by which a diagonal may be raised for problems in which weights may take any value.
_MOST_RAISED = 1e-6


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file: the length of a JSON header (8 bytes), the header, the arrays."""
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        body = memoryview(data)[8 + length :]
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(body):
                raise ValueError(f"tensor {name!r} is incomplete")
            values = np.frombuffer(body[begin:end], _TYPES[entry["dtype"]])
            tensors[name] = values.astype(values.dtype.newbyteorder("=")).reshape(entry["shape"])
    except OSError as error:
        raise RefusedError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RefusedError(f"{path} is no whole safetensors file ({error})") from error
    return tensors, metadata


def digest(tensors: Mapping[str, Any], text: str) -> str:
    """SHA-256 of a text and of tensors: name, type, shape and little-endian values of each, sorted by name."""
    whole = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        whole.update(f"\n{name} {array.dtype.name} {list(array.shape)}\n".encode())
        whole.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return whole.hexdigest()


@dataclass
class Certificate:
    """What a file says.

    Attributes
    ----------
    tensors, about
        Of the file.
    weight : ndarray of shape (out, n)
        Dense weights.
    shape : tuple of int
        Of the weight of one output channel.
    gram : ndarray of shape (groups, n, n)
    target : ndarray of shape (out, n)
    constant : ndarray of shape (out,)
    proven : set
        Minorants that were proven already.
    """

    tensors: dict[str, Any]
    about: dict[str, Any]
    weight: Any
    shape: tuple[int, ...]
    gram: Any
    target: Any
    constant: Any
    proven: set[Any] = field(default_factory=set)

    def group_of(self, channel: int) -> int:
        """The Gram matrix of an output channel."""
        return int(channel // (len(self.weight) // len(self.gram)))


def read_certificate(path: Path, layers: Path | None) -> Certificate:
    """Read a file, and the layer from another one where it has the SHA-256 of the layer's arrays alone."""
    tensors, metadata = read_tensors(path)
    if metadata.get("layerbounds.solution") not in ("1", "2"):
        raise RefusedError(f"{path} is no solution of schema 1 or 2, which this checker reads")
    text = metadata.get("solution", "")
    if digest(tensors, text) != metadata.get("sha256"):
        raise RefusedError(f"{path} is damaged: its SHA-256 is not the one that it names")
    about = json.loads(text)
    stored = about["layer"].get("sha256")
    if stored is not None:
        if layers is None:
            raise RefusedError(f"{path} has but the SHA-256 of its layer's arrays; pass the layer file (--input)")
        found = read_tensors(layers)[0]
        name = about["layer"]["name"]
        own = {f"layer.{part}": found[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in found}
        for part in stored:
            if part not in own or digest({part: own[part]}, "") != stored[part]:
                raise RefusedError(f"{name}{part[5:]} in {layers} is not the array whose SHA-256 the certificate has")
        tensors |= {part: own[part] for part in stored}
    return _certificate(tensors, about)


_PARTS = ("weight", "gram", "target", "constant", "input_mean", "residual_mean")


def _certificate(tensors: dict[str, Any], about: dict[str, Any]) -> Certificate:
    weight = tensors["layer.weight"]
    matrix = weight.reshape(len(weight), -1).astype(np.float64)
    n = matrix.shape[1]
    gram = tensors["layer.gram"].reshape(-1, n, n)
    target = tensors.get("layer.target", matrix)
    constant = tensors.get("layer.constant", np.zeros(len(matrix)))
    if gram.dtype != np.float64 or target.shape != matrix.shape or constant.shape != (len(matrix),):
        raise RefusedError("the layer's arrays have wrong shapes or types")
    if not all(np.all(np.isfinite(array)) for array in (matrix, gram, target, constant)) or np.any(constant < 0):
        raise RefusedError("the layer holds NaN, infinity or a negative constant")
    if len(matrix) % len(gram) or np.any(gram != gram.transpose(0, 2, 1)):
        raise RefusedError("the Gram matrix is not symmetric, or not one for each group of channels")
    for group in gram:
        if np.any(np.diag(group) < 0) or np.any(group[np.diag(group) == 0]):
            raise RefusedError("the Gram matrix is not positive semidefinite: its diagonal says so")
    if free_values(about["problem"]):
        for group, report in zip(gram, about["layer"]["reports"], strict=True):
            if not 0.0 <= report["raised"] <= _MOST_RAISED:
                raise RefusedError("the Gram matrix's diagonal is raised by more than rounding explains")
            np.fill_diagonal(group, np.diag(group) * (1.0 + report["raised"]))
    return Certificate(tensors, about, matrix, weight.shape[1:], gram, target, constant)


def free_values(problem: Mapping[str, Any]) -> bool:
    """Whether weights may take any value."""
    return bool(problem["family"] == "free codebook" or problem.get("refit") is True)


@dataclass
class Structure:
    """Units of inputs, groups of units, and how many units of each group may be kept."""

    unit: Any
    group: Any
    capacity: Any

    def excess(self, used: Any) -> bool:
        """Whether the units of some inputs, a mask of shape (n,), exceed a capacity."""
        units = np.unique(self.unit[used])
        return bool(np.any(np.bincount(self.group[units], minlength=len(self.capacity)) > self.capacity))

    def on(self, live: Any) -> Structure:
        """The units of some inputs, numbered anew; a group may keep no more units than it has."""
        units, unit = np.unique(self.unit[live], return_inverse=True)
        groups, group = np.unique(self.group[units], return_inverse=True)
        return Structure(unit, group, np.minimum(self.capacity[groups], np.bincount(group, minlength=len(groups))))


def structure(certificate: Certificate) -> Structure:
    """Units, groups and capacities of the pattern that a problem names."""
    problem, shape = certificate.about["problem"], certificate.shape
    label, kept, n = problem["pattern"], problem["kept"], math.prod(certificate.shape)
    inputs, none = np.arange(n), np.zeros(n, dtype=np.int64)
    counted = re.fullmatch(r"(unstructured|channel|column|position|head:(\d+)|block:(\d+)|)", label)
    ratio = re.fullmatch(r"(?:transposable:|venom:\d+:)?(\d+):(\d+)(@in_channels)?", label)
    if ratio is not None:
        size, group = int(ratio[2]), inputs // int(ratio[2])
        if ratio[3]:
            channel, position = np.divmod(inputs, math.prod(shape[1:]))
            group = position * -(-shape[0] // size) + channel // size
        return Structure(inputs, group, np.minimum(int(ratio[1]), np.bincount(group)))
    if counted is None or not isinstance(kept, int):
        raise RefusedError(f"this checker knows no pattern {label!r}")
    size = int(counted[2] or counted[3] or 1)
    units = {
        "unstructured": inputs,
        "column": inputs,
        "channel": inputs // math.prod(shape[1:]),
        "position": inputs % math.prod(shape[1:]),
        "": certificate.tensors.get("problem.pattern.unit", none),
    }
    unit = units.get(label, inputs // size)
    count = int(unit.max()) + 1
    if label.startswith("block"):
        kept = count if kept >= n else kept // size
    return Structure(unit, np.zeros(count, dtype=np.int64), np.array([kept]))


def levels(certificate: Certificate, channel: int) -> Any:
    """The levels of each weight of a channel, shape (n, levels): scale · (code − zero point) + offset in float64."""
    codes, scale, zero, offset = grid(certificate, channel)
    return scale[:, None] * (codes - zero[:, None]) + offset[:, None] + 0.0


def grid(certificate: Certificate, channel: int) -> tuple[Any, Any, Any, Any]:
    """The codes, and the scale, zero point and offset of each input of a channel."""
    parts = [certificate.tensors[f"problem.grid.{name}"] for name in ("codes", "scale", "zero_point", "group")]
    codes, scale, zero, group = parts
    offset = certificate.tensors.get("problem.grid.offset", np.zeros(scale.shape))
    if not np.all((group >= 0) & (group < scale.shape[1])) or not scale.shape == zero.shape == offset.shape:
        raise RefusedError("an input belongs to a group of scales that is not there")
    return codes, scale[channel, group], zero[channel, group], offset[channel, group]


def lattice(certificate: Certificate, channel: int) -> tuple[Any, Any, Any] | None:
    """Scales and zero points with which codes 0, 1, 2, … are near the levels, and how many each input has.

    None where the codes are not consecutive. An input whose scale is 0 has the code 0 alone, and the median of the
    channel's other scales; where there are none, the largest size of an offset, or 1.
    """
    codes, scale, zero, offset = grid(certificate, channel)
    if not np.array_equal(codes - codes[0], np.arange(len(codes))):
        return None
    size, count = np.abs(scale), np.where(scale == 0.0, 1, len(codes))
    size[scale == 0.0] = np.median(size[scale != 0.0]) if np.any(scale) else np.max(np.abs(offset)) or 1.0
    first = np.where(scale > 0, zero - codes[0], np.where(scale < 0, codes[-1] - zero, 0.0))
    return size, first - offset / size, count


def rows_together(certificate: Certificate) -> list[list[int]]:
    """The channels of each interval, as the problem couples them: rows that share a mask or a scale."""
    problem, out = certificate.about["problem"], len(certificate.weight)
    share = None if problem["family"] == "filters" else problem.get("share", 1)
    share = out // len(certificate.gram) if share is None else share
    share = out if problem.get("granularity") == "tensor" and problem["family"].startswith("free scale") else share
    sets: dict[tuple[int, int], list[int]] = {}
    size = out // len(certificate.gram)
    for channel in certificate.tensors["solution.channels"].tolist():
        sets.setdefault((channel // size, channel % size // share), []).append(channel)
    for (group, index), rows in sets.items():
        first, last = index * share, min((index + 1) * share, size)
        if group < 0 or sorted(rows) != list(range(group * size + first, group * size + last)):
            raise RefusedError("rows that are bound to one another are not all there")
    return list(sets.values())
