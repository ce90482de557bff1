"""What compression of a model gives."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerbounds.arguments import as_path
from layerbounds.arrays import Float
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.compression.destinations.base import Destination
from layerbounds.display import METHOD, Bar, Displayed, Shape, Summary, Table
from layerbounds.display.outward import ends, rounded

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False, repr=False)
class LayerOutcome(Displayed):
    """What compression did to one layer.

    Attributes
    ----------
    name : str
    allowed : str
        The problem in words.
    weight_shape : tuple of int
    sets : list of list of int
        The output channels of each entry of what follows: single ones, unless the problem binds several.
    error : ndarray of shape (sets,)
        f of the weights used, mean squared output error per position, for the inputs that the layer sees behind the
        already compressed ones.
    loaded_error : ndarray of shape (sets,)
        The same of the weights as the compressed model holds them, rounded once more to the type of its tensors.
    lower_bound, upper_bound : ndarray of shape (sets,), or None
        Certified interval around the smallest possible f; None where none was asked for.
    energy : ndarray of shape (sets,)
        f(0).
    seconds : float
        Time for the weights and the interval.
    """

    name: str
    allowed: str
    weight_shape: tuple[int, ...]
    sets: list[list[int]]
    error: Float
    loaded_error: Float
    lower_bound: Float | None
    upper_bound: Float | None
    energy: Float
    seconds: float

    def relative(self, value: Float | None) -> float | None:
        """Sum over the channels as a fraction of the layer's energy; None where that is zero or nothing is known."""
        total = float(self.energy.sum())
        return None if value is None or total <= 0 else float(value.sum()) / total

    @property
    def _span(self) -> tuple[float, float] | None:
        """The interval of the smallest error, relative to f(0)."""
        low, high = self.relative(self.lower_bound), self.relative(self.upper_bound)
        return None if low is None or high is None else (low, high)

    def _summary(self) -> Summary:
        facts = [self.allowed, f"error {rounded(self.relative(self.error), True, 4, 2)} % of f(0)"]
        if self._span is not None:
            facts.append(f"least error {ends(self._span, 4, 2)} %")
        return Summary(self.name, facts)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "layer": self.name,
            "allowed": self.allowed,
            "weight_shape": list(self.weight_shape),
            "rows": self.sets,
            "error": self.error,
            "loaded_error": self.loaded_error,
            "lower_bound": self.lower_bound,
            "upper_bound": self.upper_bound,
            "energy": self.energy,
            "relative_error": self.relative(self.error),
            "relative_loaded_error": self.relative(self.loaded_error),
            "relative_lower_bound": self.relative(self.lower_bound),
            "relative_upper_bound": self.relative(self.upper_bound),
            "seconds": self.seconds,
        }


@dataclass(eq=False, repr=False)
class CompressedModel(Displayed):
    """A compressed copy of a model.

    Attributes
    ----------
    model : torch.nn.Module
        With the compressed weights, in the precision of the original.
    method : str
        The one that was named, or the usual one; several where layers are compressed differently.
    layers : dict of str to LayerOutcome
        In the order of execution.
    unreached : tuple of str
        Layers that no batch reached, or that saw no position that counts: they are not compressed.
    refused : dict of str to str
        Layers that cannot be compressed, and why: they keep their dense weights.
    left : dict of str to str
        Layers that were left as they are, and why: nothing was asked of them, or the format cannot hold them.
    quantized : dict of str to QuantizedWeight
        With a format that stores codes: the codes of each quantized layer, and its grid.
    folded : dict of str to str
        Batch normalisation folded into each layer.
    interrupted : bool
        Whether Ctrl-C ended the work before the last layer; the layers not listed are not compressed.
    """

    model: nn.Module
    method: str
    layers: dict[str, LayerOutcome] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    destination: Destination | None = field(default=None, repr=False)

    def _summary(self) -> Summary:
        facts = [f"{len(self.layers)} layer{'' if len(self.layers) == 1 else 's'} compressed"]
        for what, names in (
            ("left as they are", self.left),
            ("refused", self.refused),
            ("not reached", self.unreached),
        ):
            if names:
                facts.append(f"{len(names)} {what}")
        return Summary(f"{type(self.model).__name__} · {self.method}", facts + ["interrupted"] * self.interrupted)

    def _tables(self) -> list[Table]:
        rows: list[list[str | Bar | None]] = []
        for name, layer in self.layers.items():
            used, span = layer.relative(layer.error), layer._span
            error, least = rounded(used, True, 4, 2), ends(span, 4, 2)
            point = None if used is None else Bar(used, used, f"{name}: {error} %", METHOD)
            rows.append([name, layer.allowed, error, point, least, Bar(*span, f"{name}: {least} %") if span else None])
        kinds: dict[str, Shape] = {"layer": "text", "what it is": "text", "error, % of f(0)": "number", "error": "bar"}
        return [Table({**kinds, "least error, %": "number", "certified interval": "bar"}, rows, unit="%")]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model in the format that `compress` was asked for, or its state dict as safetensors.

        What is written is read back, and compared with `quantized` bit for bit.

        Parameters
        ----------
        path : path-like
            A folder that does not exist yet or is empty; for ``"gguf"`` and without a format a file.

        Raises
        ------
        InputError
            If it cannot be written.
        """
        from layerbounds.capturing.loading import save_state

        out = as_path(path, "path")
        if self.destination is None:
            save_state(out, self.state_dict, list(self.layers))
        else:
            self.destination.write(out, self.model, self.quantized)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The model's tensors by name, without extra state of other types."""
        return {name: value for name, value in self.model.state_dict().items() if hasattr(value, "detach")}
