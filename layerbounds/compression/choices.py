"""What each layer of a model is compressed to: one choice for all, one for each pattern of names, or another tool's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerbounds.allocation.formats.compression import DENSE, Compression
from layerbounds.allocation.formats.registry import FORMATS, find_format
from layerbounds.arguments import shown
from layerbounds.compression.recipe import Recipe
from layerbounds.exceptions import InputError
from layerbounds.names import match_names
from layerbounds.network.allocate import read_text
from layerbounds.suggestions import did_you_mean

#: What a choice for some layers may say beside ``bits``, each in place of the argument of `compress`.
_OWN = ("bits", "granularity", "symmetric", "range", "density", "pattern")
#: What is said of layers that are not to be compressed.
AS_ASKED = "as asked"
UNNAMED = "bits name nothing for it"
#: Matches every layer.
_ALL = "*"
#: What all layers have in common may speak of grids, which a layer that is only pruned has none of.
_NO_GRID = {"bits": None, "granularity": None, "symmetric": None, "range": None}


class Choices:
    """The recipe of each layer.

    Parameters
    ----------
    bits : int, mapping or str, optional
        As ``bits`` of `compress`.
    **common : Any
        The other arguments of a `Recipe`.

    Raises
    ------
    InputError
        If something contradicts itself, or a file cannot be read: before the model runs.
    """

    def __init__(self, bits: Any, **common: Any) -> None:
        self._common = common
        self._rules: dict[str, Recipe | None] = {}
        self._file: _File | None = None
        if isinstance(bits, str):
            tool, colon, path = bits.partition(":")
            if not colon or not path:
                raise InputError(
                    f"bits are {shown(bits)}; pass a number, a mapping of names and patterns to numbers, or TOOL:FILE "
                    f"with one of {', '.join(FORMATS)}."
                )
            self._file = _File(find_format(tool).name, read_text(path))
        elif isinstance(bits, Mapping):
            if not bits:
                raise InputError("bits are an empty mapping; name at least one layer.")
            for pattern, said in bits.items():
                if not isinstance(pattern, str):
                    raise InputError(f"bits have the key {shown(pattern)}; pass names and patterns of layers.")
                own = _own(said, pattern)
                self._rules[pattern] = None if own is None else self._recipe(**own)
            if not any(self._rules.values()):
                raise InputError("bits leave all layers as they are; name one that is compressed.")
        else:
            self._rules[_ALL] = self._recipe(bits=bits)

    def _recipe(self, **own: Any) -> Recipe:
        return Recipe(**{**self._common, **own})

    def recipes(self, names: Sequence[str]) -> tuple[dict[str, Recipe], dict[str, str]]:
        """The recipe of each layer that is compressed, and why the others are not.

        Raises
        ------
        InputError
            If a pattern matches no layer, or what a file asks for cannot be done.
        """
        chosen = self._of_rules(names) if self._file is None else self._of_file(self._file, names)
        recipes = {name: recipe for name in names if (recipe := chosen.get(name)) is not None}
        left = {name: AS_ASKED if name in chosen else UNNAMED for name in names if name not in recipes}
        if not recipes:
            raise InputError("every layer stays as it is; choose bits for at least one of them.")
        return recipes, left

    def _of_rules(self, names: Sequence[str]) -> dict[str, Recipe | None]:
        chosen: dict[str, Recipe | None] = {}
        for pattern, recipe in self._rules.items():
            # The first that matches counts.
            for name in match_names(pattern, names, "layer"):
                chosen.setdefault(name, recipe)
        return chosen

    def _of_file(self, file: _File, names: Sequence[str]) -> dict[str, Recipe | None]:
        return {
            name: self._of_compression(name, wanted)
            for name, wanted in find_format(file.tool).read(file.text, names).items()
        }

    def _of_compression(self, name: str, wanted: Compression) -> Recipe | None:
        if not wanted.quantized and not wanted.pruned:
            return None
        if wanted.codebook is not None:
            raise InputError(
                f"the file asks for {wanted.label} in layer {name!r}, and compress has integer codes; choose bits."
            )
        own: dict[str, Any] = dict(_NO_GRID)
        if wanted.quantized:
            own = {"bits": wanted.bits, "granularity": wanted.granularity, "symmetric": wanted.symmetric}
        if wanted.pruned:
            refit = wanted.refit or wanted.quantized
            own |= {"pattern": wanted.pattern, "density": wanted.density, "refit": refit}
        return self._recipe(**own)


@dataclass(frozen=True)
class _File:
    """What a file of another tool says."""

    tool: str
    text: str


def _own(said: Any, pattern: str) -> dict[str, Any] | None:
    """What is said of some layers as arguments of a recipe; None where they stay as they are."""
    if isinstance(said, Mapping):
        strange = next((key for key in said if key not in _OWN), None)
        if strange is not None:
            hint = did_you_mean(strange, _OWN)
            raise InputError(f"bits of {pattern!r} say {shown(strange)}; {hint}choose {', '.join(_OWN)}.")
        own = dict(said)
    else:
        own = {"bits": said}
    pruned = own.get("density") is not None or own.get("pattern") is not None
    bits = own.get("bits")
    if bits is None or (type(bits) is int and bits == DENSE):
        return {**own, **_NO_GRID} if pruned else None
    return own
