"""What may be chosen: for each layer some compressions, with their sizes and certified intervals of error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layerbounds.arguments import members, real_number, shown, whole_number
from layerbounds.exceptions import InputError
from layerbounds.suggestions import did_you_mean

#: Sums of sizes are exact in float64, too.
MOST_BITS = 2**53


@dataclass(frozen=True)
class Option:
    """One compression of a layer.

    Attributes
    ----------
    name : str
    storage : int
        Bits that the whole layer takes.
    lower, upper : float
        Certified interval of the smallest error that it allows; the upper end may be infinite.
    expressible : mapping
        What the formats of tools need to know of it: ``bits`` (16 where the weights stay as they are), ``symmetric``,
        ``granularity``, ``codebook``, ``zero_point`` (``"real"`` or None), ``pattern``, ``density``, ``share``,
        ``refit``. What is missing is None.

    Raises
    ------
    InputError
        If a number is out of range, or the lower end lies above the upper one.
    """

    name: str
    storage: int
    lower: float
    upper: float
    expressible: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"the name of an option is {shown(self.name)}; pass a text.")
        what = f"of option {self.name!r}"
        object.__setattr__(self, "storage", whole_number(self.storage, f"storage {what}", 0, MOST_BITS))
        lower = real_number(self.lower, f"lower {what}", 0.0)
        upper = lower if self.upper is None else self.upper
        if not (isinstance(upper, float) and upper == math.inf):
            upper = real_number(upper, f"upper {what}", 0.0)
        if lower > upper:
            raise InputError(f"the interval {what} is [{lower:g}, {upper:g}]; its lower end must not exceed the upper.")
        if not isinstance(self.expressible, Mapping):
            raise InputError(f"expressible {what} is {shown(self.expressible)}; pass a mapping.")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)
        object.__setattr__(self, "expressible", dict(self.expressible))


@dataclass(frozen=True)
class LayerOptions:
    """What may be chosen for one layer.

    Attributes
    ----------
    name : str
    weights : int
        Number of its weights, for bits per weight.
    options : tuple of Option
        At least one, of different names.
    scale : float
        What its errors are multiplied by in the sum over the layers: 1/energy for relative errors. At 0 they do not
        count.

    Raises
    ------
    InputError
        If there is no option, two have one name, or a number is out of range.
    """

    name: str
    weights: int
    options: tuple[Option, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"the name of a layer is {shown(self.name)}; pass a text.")
        options = tuple(members(self.options, f"options of layer {self.name!r}"))
        if not options or not all(isinstance(option, Option) for option in options):
            raise InputError(f"layer {self.name!r} has no list of options; pass at least one Option.")
        names = [option.name for option in options]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"layer {self.name!r} has option {twice!r} twice; name each once.")
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "weights", whole_number(self.weights, f"weights of layer {self.name!r}", 0, MOST_BITS))
        object.__setattr__(self, "scale", real_number(self.scale, f"scale of layer {self.name!r}", 0.0))

    def index(self, name: str) -> int:
        """The number of an option.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        names = [option.name for option in self.options]
        if name not in names:
            hint = did_you_mean(name, names)
            raise InputError(f"layer {self.name!r} has no option {shown(name)}; {hint}choose {', '.join(names)}.")
        return names.index(name)


def check_layers(layers: Sequence[LayerOptions]) -> tuple[LayerOptions, ...]:
    """The layers, if each has another name and their sizes can be added.

    Raises
    ------
    InputError
    """
    checked = tuple(members(layers, "layers"))
    if not checked or not all(isinstance(layer, LayerOptions) for layer in checked):
        raise InputError("layers are no list of LayerOptions; pass at least one.")
    names = [layer.name for layer in checked]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"layer {twice!r} is there twice; name each once.")
    if sum(max(option.storage for option in layer.options) for layer in checked) > MOST_BITS:
        raise InputError(f"the layers take more than {MOST_BITS} bits together; leave out the largest options.")
    return checked


def chosen_options(layers: Sequence[LayerOptions], choice: Mapping[str, str]) -> list[int]:
    """The number of each layer's option, from names of layers to names of options.

    Raises
    ------
    InputError
        If a layer is missing or unknown, or has no such option.
    """
    if not isinstance(choice, Mapping):
        raise InputError(f"the choice is {shown(choice)}; pass a mapping from layers to options.")
    known = {layer.name for layer in layers}
    foreign = next((name for name in choice if name not in known), None)
    if foreign is not None:
        hint = did_you_mean(foreign, known)
        raise InputError(f"there is no layer {shown(foreign)} to choose an option for; {hint}leave it out.")
    missing = next((name for name in known if name not in choice), None)
    if missing is not None:
        raise InputError(f"nothing is chosen for layer {missing!r}; name one of its options.")
    return [layer.index(choice[layer.name]) for layer in layers]
