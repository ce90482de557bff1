"""A proof of a lower end, before it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from layerbounds.certificates.dual import Parts


@dataclass(frozen=True, eq=False)
class Minorant:
    """A matrix below the Gram matrix, which several proofs may name.

    Attributes
    ----------
    place : str
        Where the metadata name it.
    key : object
        What tells it apart: `shared`, or that and a number.
    shared : object
        Kept, so that no other object gets its identity.
    make : callable
        To its tensors; none where it is not proven.
    """

    place: str
    key: Any
    shared: object
    make: Callable[[], Parts]


@dataclass(frozen=True, eq=False)
class Proof:
    """What is stored of a proof.

    Attributes
    ----------
    kind : str
    parts : dict
        Its own tensors.
    minorants : list of Minorant
    several : bool
        Whether the metadata name lists of minorants.
    said : dict
        What else the metadata say.
    """

    kind: str
    parts: Parts
    minorants: list[Minorant] = field(default_factory=list)
    several: bool = False
    said: dict[str, Any] = field(default_factory=dict)
