"""One interval of a certificate: the inputs that have energy, what is allowed there, and its proof."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import Minorant, Tangent, prove, read_minorant
from layerbounds_verify.exact import RefusedError
from layerbounds_verify.reader import Certificate, Structure

#: With ``exact`` minorants are proven without rounding, up to so many inputs that have energy.
EXACT_INPUTS = 32


@dataclass
class Work:
    """One interval.

    Attributes
    ----------
    certificate : Certificate
    index : int
        Of the interval.
    rows : list of int
    live : ndarray of bool
        Inputs that have energy.
    gram : ndarray of shape (n, n)
    target : ndarray of shape (rows, n)
    constant : Fraction
    exact : bool
        Whether minorants of few inputs are proven without rounding.
    values : ndarray or None
        What weights may be: of shape (n, levels), or (rows, n) for rows that limit one another; None where any number.
    structure : Structure or None
    more : object
        What else the family knows of what is allowed.
    metric : ndarray of shape (rows, rows) or None
        Q, where errors of the rows count tr(Q (v − w) H (v − w)ᵀ).
    other : bool
        Whether the Gram matrix is not the layer's.
    """

    certificate: Certificate
    index: int
    rows: list[int]
    live: Any
    gram: Any
    target: Any
    constant: Fraction
    exact: bool
    values: Any = None
    structure: Structure | None = None
    more: Any = None
    metric: Any = None
    other: bool = False

    @property
    def problem(self) -> Any:
        """What the metadata say of the problem."""
        return self.certificate.about["problem"]

    @property
    def said(self) -> Any:
        """What the metadata say of the proof."""
        return self.certificate.about["proofs"][self.index]

    @property
    def kind(self) -> str:
        """Of the proof."""
        return str(self.said["kind"])

    def part(self, name: str) -> Any:
        """A tensor of the proof."""
        return self.certificate.tensors[f"proof.{self.index}.{name}"]

    def has(self, name: str) -> bool:
        """Whether the proof has that tensor."""
        return f"proof.{self.index}.{name}" in self.certificate.tensors

    def parts(self, *names: str) -> dict[str, Any]:
        """Some tensors of the proof; all without names."""
        begin = f"proof.{self.index}."
        every = [name.removeprefix(begin) for name in self.certificate.tensors if name.startswith(begin)]
        return {name: self.part(name) for name in names or every}

    def unknown(self) -> RefusedError:
        """The refusal of another kind of proof."""
        return RefusedError(f"this checker knows no proofs of the kind {self.kind!r} for this problem")

    def minorant(self, number: int | None = None, scale: Any = None) -> Minorant:
        """A minorant of the file, by default the first that the proof names, which is below the Gram matrix.

        With integer forms scales that make the codes consecutive numbers are needed.
        """
        if number is None:
            number = self.said["minorants"][0] if "minorants" in self.said else self.said["minorant"]
        name, n = f"proof.minorant.{number}", len(self.gram)
        found = read_minorant(self.certificate.tensors, name, n)
        scale = None if found.forms is None else scale
        if found.forms is not None and scale is None:
            raise RefusedError(
                "its minorant has integer forms, and the codes of this problem do not follow one another"
            )
        where = tuple(self.rows) if self.other else self.certificate.group_of(self.rows[0])
        key = name, where, None if scale is None else scale.tobytes()
        if key not in self.certificate.proven:
            prove(self.gram, found, scale, self.exact and n <= EXACT_INPUTS)
            self.certificate.proven.add(key)
        return found

    def tangent(self, minorant: Minorant) -> Tangent:
        """At the proof's point, of one row."""
        weights = () if self.values is None else (self.values,)
        return Tangent(self.gram, self.target[0], self.part("z"), minorant, *weights)

    def allow_levels(self, weights: Any, table: Any) -> None:
        """Refuse weights that are not in a sorted table of shape (inputs, levels), and note these."""
        hit = np.any(weights[0][:, None] == table, axis=1)
        if not hit.all():
            raise RefusedError(f"weight {int(np.argmin(hit))} of channel {self.rows[0]} is no level of its grid")
        self.values = table[self.live]

    def refuse_changes(self, weights: Any, kept: Any) -> None:
        """Refuse weights that are kept and not the original ones."""
        original = self.certificate.weight[self.rows]
        same = (weights == original) | (~kept & (weights == 0.0)) | (~self.live & (weights == 0.0))
        if not same.all():
            raise RefusedError(f"kept weights of channel {self.rows[0]} were changed, in a problem that changes none")
