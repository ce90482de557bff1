"""What is known about the layers of a checkpoint, each beside the best that is possible."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from layerbounds.display import INTERVAL, PRUNING, Bar, Displayed, Shape, Summary, Table, picture
from layerbounds.display.outward import ends, rounded
from layerbounds.exceptions import UnknownNameError
from layerbounds.frames import Kind, data_frame
from layerbounds.scoring.verdict import Distance
from layerbounds.suggestions import did_you_mean

#: What a layer's score may be.
SCORED, MISMATCH = "scored", "suspected mismatch"

_TRIVIAL = "only a trivial bound"
#: Names that a line has at most.
_NAMED = 6
#: From so many per cent on, the least error is 0 up to rounding.
_SILLY = 1e7


@dataclass(frozen=True, repr=False)
class Standing(Displayed):
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

    def _summary(self) -> Summary:
        return Summary(self.label, [f"least error {ends((self.lower_bound, self.upper_bound))}", self.words()])

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


@dataclass(frozen=True, repr=False)
class LayerScore(Displayed):
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

    Examples
    --------
    >>> from safetensors.numpy import save_file
    >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
    >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
    >>> inputs = np.random.default_rng(0).normal(size=(64, 2))
    >>> fc = lb.Layer.from_activations(np.full((8, 2), 0.4), inputs, "fc")
    >>> score = lb.score("awq.safetensors", {"fc": fc}, channels=[0], time_limit=1).layers[0]
    >>> score.own.lower_bound <= score.error
    True
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

    def _summary(self) -> Summary:
        facts = [f"{self.format}, {self.bits_per_weight:.4g} bits per weight"]
        if self.relative_error is not None:
            facts.append(f"error {rounded(self.relative_error, True, 4, 2)} % of f(0)")
        if self.status == MISMATCH:
            facts.append(MISMATCH)
        facts += [f"{what}: {standing.words()}" for what, standing, _ in self._standings if standing is not None]
        return Summary(self.layer, facts)

    @property
    def _standings(self) -> list[tuple[str, Standing | None, str]]:
        return [("its own grid", self.own, INTERVAL), ("any scales", self.free, PRUNING)]

    def _tables(self) -> list[Table]:
        rows: list[list[str | Bar | None]] = [
            [what, _distance(standing, colour), standing.words(), ends((standing.lower_bound, standing.upper_bound))]
            for what, standing, colour in self._standings
            if standing is not None
        ]
        kinds: dict[str, Shape] = {"beside the best of": "text", _RATIO: "bar", "": "text", "least error": "number"}
        return [Table(kinds, rows)] if rows else []

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON.

        Examples
        --------
        >>> from safetensors.numpy import save_file
        >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
        >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
        >>> inputs = np.random.default_rng(0).normal(size=(64, 2))
        >>> fc = lb.Layer.from_activations(np.full((8, 2), 0.4), inputs, "fc")
        >>> lb.score("awq.safetensors", {"fc": fc}, channels=[0], time_limit=1).layers[0].to_dict()["layer"]
        'fc'
        """
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record |= {
            "sqnr_db": self.sqnr_db,
            "own": None if self.own is None else self.own.to_dict(),
            "free": None if self.free is None else self.free.to_dict(),
        }
        return record


#: Heading of bars of how far above the least error weights are.
_RATIO = "error / least error"


def _distance(standing: Standing | None, colour: str) -> Bar | None:
    """From the ratio to the least error that is certain to the one that is possible."""
    if standing is None:
        return None
    least, most = standing.distance.at_least, standing.distance.at_most
    high = math.inf if most is None or standing.trivial else 1.0 + most / 100.0
    return Bar(1.0 + least / 100.0, high, standing.words(), colour)


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


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Displayed):
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

    Examples
    --------
    >>> from safetensors.numpy import save_file
    >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
    >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
    >>> inputs = np.random.default_rng(0).normal(size=(64, 2))
    >>> fc = lb.Layer.from_activations(np.full((8, 2), 0.4), inputs, "fc")
    >>> scores = lb.score("awq.safetensors", {"fc": fc}, channels=[0], time_limit=1)
    >>> [entry.layer for entry in scores]
    ['fc']
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
        names = [score.layer for score in self]
        hint = did_you_mean(name, names)
        raise UnknownNameError(why or f"no layer {name!r} was scored; {hint}there are {', '.join(names)}.")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw for each layer between which two figures its error over the least error lies.

        Parameters
        ----------
        path : path-like, optional
            A file for the picture that ends in .svg, .png or .pdf.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingExtraError
            Without matplotlib.
        InputError
            If no layer was scored, or no picture can be written to the path.

        Examples
        --------
        >>> from safetensors.numpy import save_file
        >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
        >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
        >>> inputs = np.random.default_rng(0).normal(size=(64, 2))
        >>> fc = lb.Layer.from_activations(np.full((8, 2), 0.4), inputs, "fc")
        >>> figure = lb.score("awq.safetensors", {"fc": fc}, channels=[0], time_limit=1).plot("scores.svg")
        """
        return picture(self, path)

    def _summary(self) -> Summary:
        count = len(self.layers)
        facts = [self.label, f"{count} layer{'' if count == 1 else 's'} scored"]
        known = [(score.own.distance.at_most, score) for score in self if score.own is not None]
        worst = max(
            ((most, score) for most, score in known if most is not None), key=lambda pair: pair[0], default=None
        )
        if worst is not None and worst[1].own is not None:
            facts.append(f"farthest from the best of its own grid: {worst[1].layer}, {worst[1].own.words()}")
        if self.refused:
            facts.append(f"{len(self.refused)} cannot be compared: {', '.join(list(self.refused)[:_NAMED])}")
        if self.interrupted:
            facts.append("interrupted")
        return Summary(self.checkpoint, facts)

    def _tables(self) -> list[Table]:
        free = any(score.free is not None for score in self)
        rows = []
        for score in self:
            error = rounded(score.relative_error, True, 4, 2)
            row: list[str | Bar | None] = [score.layer, score.format, f"{score.bits_per_weight:.4g}", error]
            for _, standing, colour in score._standings[: 1 + free]:
                words = "" if standing is None else standing.words()
                row += [_distance(standing, colour), MISMATCH if score.status == MISMATCH else words]
            rows.append(row)
        kinds: dict[str, Shape] = {"layer": "text", "stored as": "text", "bits": "number", "error, % of f(0)": "number"}
        kinds |= {_RATIO: "bar", "its own grid": "text"}
        if free:
            kinds |= {"any scales": "bar", "": "text"}
        return [Table(kinds, rows)]

    def to_frame(self) -> Any:
        """A pandas data frame, a row for each layer.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> from safetensors.numpy import save_file
        >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
        >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
        >>> inputs = np.random.default_rng(0).normal(size=(64, 2))
        >>> fc = lb.Layer.from_activations(np.full((8, 2), 0.4), inputs, "fc")
        >>> lb.score("awq.safetensors", {"fc": fc}, channels=[0], time_limit=1).to_frame().shape[0]
        1
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
        """Ready for JSON.

        Examples
        --------
        >>> from safetensors.numpy import save_file
        >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
        >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
        >>> inputs = np.random.default_rng(0).normal(size=(64, 2))
        >>> fc = lb.Layer.from_activations(np.full((8, 2), 0.4), inputs, "fc")
        >>> lb.score("awq.safetensors", {"fc": fc}, channels=[0], time_limit=1).to_dict()["format"]
        'AWQ'
        """
        return {
            "checkpoint": self.checkpoint,
            "format": self.label,
            "original": self.original,
            "layers": [score.to_dict() for score in self],
            "refused": dict(self.refused),
            "unmatched": list(self.unmatched),
            "interrupted": self.interrupted,
        }
