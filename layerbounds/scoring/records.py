"""What is known about the layers of a checkpoint, each beside the best that is possible."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from layerbounds.exceptions import UnknownNameError
from layerbounds.frames import Kind, data_frame
from layerbounds.scoring.verdict import Distance

#: What a layer's score may be.
SCORED, MISMATCH = "scored", "suspected mismatch"

_TRIVIAL = "only a trivial bound"
#: From so many per cent on, the least error is 0 up to rounding.
_SILLY = 1e7


@dataclass(frozen=True)
class Standing:
    """The error of stored weights beside a certified interval of the least one; sums over the channels.

    Attributes
    ----------
    label : str
        What the weights of the interval may be.
    lower_bound, upper_bound : float
    distance : Distance
        From the optimum, in per cent.
    trivial : bool
        Whether nothing is known from below.
    optimal : int
        How many channels are proven optimal.
    lower_bounds, upper_bounds : list of float
        Of each channel.
    statuses : list of str
        Of each channel's search.
    seconds : float
        Of the search, preparation included.
    fingerprint : str
    notes : tuple of str
    """

    label: str
    lower_bound: float
    upper_bound: float
    distance: Distance
    trivial: bool
    optimal: int
    lower_bounds: list[float]
    upper_bounds: list[float]
    statuses: list[str]
    seconds: float
    fingerprint: str
    notes: tuple[str, ...] = ()

    def words(self) -> str:
        """How far the weights are from optimal; both figures hold as they are written."""
        if not self.trivial:
            return self.distance.words()
        known = Distance(None, self.distance.at_least).words()
        return _TRIVIAL + (f", {known}" if 0 < self.distance.at_least < _SILLY and "at least" in known else "")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "distance"}
        most = self.distance.at_most
        record |= {"at_most_percent": most, "at_least_percent": self.distance.at_least, "words": self.words()}
        return record


@dataclass(frozen=True)
class LayerScore:
    """A layer of a checkpoint.

    Attributes
    ----------
    layer : str
        The captured one.
    stored : str
        What the checkpoint calls it.
    format : str
    bits_per_weight : float
        Everything that the file stores for it, scales included.
    channels : list of int
        The output channels that were scored.
    status : {"scored", "suspected mismatch"}
        The latter where the error is larger than that of no weights at all: nothing was compared then.
    error : float
        Σ f of the weights as the file stores them.
    errors : list of float
        Of each channel.
    relative_error : float or None
        Σ f / Σ f(0).
    loaded_error : float
        Σ f of the weights as the format's own software rounds them.
    own : Standing or None
        Beside the best weights on the layer's own grid: scales, zero points and groups as they are stored.
    free : Standing or None
        Beside the best with any scales; None where that was not asked for, or is not to be had.
    factors : str or None
        Where the factors that were undone come from.
    estimated : bool
        Whether factors were estimated: which ones the checkpoint meant is then not certain.
    notes : tuple of str
    """

    layer: str
    stored: str
    format: str
    bits_per_weight: float
    channels: list[int]
    status: str
    error: float
    relative_error: float | None
    loaded_error: float
    errors: list[float]
    own: Standing | None = None
    free: Standing | None = None
    factors: str | None = None
    estimated: bool = False
    notes: tuple[str, ...] = ()

    @property
    def sqnr_db(self) -> float | None:
        """−10·log₁₀ of the relative error."""
        if self.relative_error is None:
            return None
        return -10.0 * math.log10(self.relative_error) if self.relative_error > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record |= {
            "sqnr_db": self.sqnr_db,
            "own": None if self.own is None else self.own.to_dict(),
            "free": None if self.free is None else self.free.to_dict(),
        }
        return record


_COLUMNS: dict[str, Kind] = {
    "layer": "text",
    "stored": "text",
    "format": "text",
    "bits_per_weight": "real",
    "channels": "whole",
    "status": "text",
    "error": "real",
    "relative_error": "real",
    "loaded_error": "real",
    "factors": "text",
    "estimated": "truth",
}
_STANDING: dict[str, Kind] = {
    "lower_bound": "real",
    "upper_bound": "real",
    "at_most_percent": "real",
    "at_least_percent": "real",
    "trivial": "truth",
    "words": "text",
}


@dataclass(frozen=True, eq=False)
class Scores:
    """The layers of a checkpoint, in the order of the capture.

    Attributes
    ----------
    checkpoint : str
        Its path.
    label : str
        Its formats.
    original : str or None
        The dense model that normalisations were compared with.
    layers : list of LayerScore
    refused : dict of str to str
        Layers that cannot be compared, and why.
    unmatched : list of str
        Captured layers that the checkpoint does not quantize.
    interrupted : bool
        Whether Ctrl-C ended the work.
    """

    checkpoint: str
    label: str
    original: str | None
    layers: list[LayerScore]
    refused: dict[str, str]
    unmatched: list[str]
    interrupted: bool = False

    def __iter__(self) -> Iterator[LayerScore]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerScore:
        for score in self.layers:
            if score.layer == name:
                return score
        why = self.refused.get(name) if isinstance(name, str) else None
        raise UnknownNameError(why or f"no layer {name!r} was scored; there are {', '.join(s.layer for s in self)}.")

    def to_frame(self) -> Any:
        """A pandas data frame, a row for each layer.

        Raises
        ------
        MissingExtraError
            Without pandas.
        """
        kinds = {**_COLUMNS, **{f"{part}_{name}": kind for part in ("own", "free") for name, kind in _STANDING.items()}}
        rows = []
        for score in self:
            record = {**score.to_dict(), "channels": len(score.channels)}
            for part in ("own", "free"):
                found = record.pop(part) or {}
                record |= {f"{part}_{name}": found.get(name) for name in _STANDING}
            rows.append(record)
        return data_frame(kinds, rows)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "checkpoint": self.checkpoint,
            "format": self.label,
            "original": self.original,
            "layers": [score.to_dict() for score in self],
            "refused": dict(self.refused),
            "unmatched": list(self.unmatched),
            "interrupted": self.interrupted,
        }
