"""Every claim of a certificate, derived anew."""

from __future__ import annotations

import importlib
import operator
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds_verify.bounds import check_positive, errors
from layerbounds_verify.exact import RefusedError, TooLittleError, below
from layerbounds_verify.reader import Certificate, read_certificate, rows_together
from layerbounds_verify.work import Work

#: What is allowed and its proofs, by family: the module of each, read where a certificate needs it.
_FAMILIES = {
    "quantization": "of_quantization",
    "pruning": "of_pruning",
    "joint": "of_joint",
    "filters": "of_filters",
    "free codebook": "of_codebooks",
    "free scale quantization": "of_scales",
}
#: The exit code where something is refused.
REFUSED = 3


@dataclass(frozen=True)
class Interval:
    """What was found about one channel, or several that are bound to one another.

    Attributes
    ----------
    rows : tuple of int
    kind : str
        What the lower end was derived from: ``dual``, ``enumeration`` or ``trivial``.
    lower_bound, upper_bound : float
        As derived here, rounded outward; the claims where they are refused.
    valid : bool
        Whether they are at least as good as what is claimed.
    reason : str
        Why not, in one sentence.
    derived : float or None
        The lower end that the proof gives, where it gives one.
    """

    rows: tuple[int, ...]
    kind: str
    lower_bound: float
    upper_bound: float
    valid: bool
    reason: str = ""
    derived: float | None = None


@dataclass(frozen=True)
class Report:
    """What was found about a file; true where all of it holds.

    Attributes
    ----------
    valid : bool
    channels : list of Interval
    problem : str
    trusted : tuple of str
        What was not checked.
    reason : str
        Why the file as a whole is refused, in one sentence.

    Examples
    --------
    >>> solution.save_certificate("certificate.safetensors")
    >>> report = lb.verify("certificate.safetensors")
    >>> len(report.channels)
    2
    """

    valid: bool
    channels: list[Interval] = field(default_factory=list)
    problem: str = ""
    trusted: tuple[str, ...] = ()
    reason: str = ""

    def __bool__(self) -> bool:
        return self.valid

    def text(self) -> str:
        """For people.

        Examples
        --------
        >>> solution.save_certificate("certificate.safetensors")
        >>> lb.verify("certificate.safetensors").text().splitlines()[0]
        'problem: quantization, 4 levels a weight, codes from -2 to 1'
        """
        lines = [f"problem: {self.problem}"] if self.problem else []
        for found in self.channels:
            ends = f"[{found.lower_bound:.9g}, {found.upper_bound:.9g}] by {found.kind}"
            said = ends if found.valid else f"REFUSED: {found.reason}"
            lines.append(f"channel {', '.join(map(str, found.rows))}: {said}")
        lines += [f"REFUSED: {self.reason}"] if self.reason else [f"trusted: {what}" for what in self.trusted]
        return "\n".join([*lines, "VALID" if self.valid else "NOT VALID"])


TRUSTED = (
    "that the Gram matrix, target and constant in the file are those of the layer and its calibration inputs",
    "that this machine's float64 arithmetic, LAPACK and numba's compiler are correct",
)


def verify(
    path: Any, layers: Any = None, *, sample: int | None = None, only: Any = None, exact: bool = False
) -> Report:
    """Check a certificate.

    Parameters
    ----------
    path : path-like
    layers : path-like, optional
        The layer file, where the certificate has but the SHA-256 of its arrays.
    sample : int, optional
        Check so many of the intervals, evenly chosen, instead of all.
    only : sequence of int, optional
        Check these of the intervals, counted from 0, instead of all.
    exact : bool
        Prove minorants by elimination in integers where there are few inputs, instead of a factorization in float64.

    Examples
    --------
    >>> solution.save_certificate("certificate.safetensors")
    >>> report = lb.verify("certificate.safetensors")
    >>> report.valid
    True
    """
    try:
        if odd := [f for f in (path, path if layers is None else layers) if not isinstance(f, (str, os.PathLike))]:
            raise RefusedError(f"a {type(odd[0]).__name__} is no path of a file; pass that of a certificate")
        certificate = read_certificate(Path(path), None if layers is None else Path(layers))
        for gram in certificate.gram:
            check_positive(gram, "Gram matrix")
        sets = rows_together(certificate)
        proofs = certificate.about.get("proofs")
        count = len(sets) if sample is None else operator.index(sample)
        chosen = (
            np.unique(np.linspace(0, len(sets) - 1, min(count, len(sets))).astype(int)).tolist() if count > 0 else []
        )
        if only is not None:
            chosen = sorted({operator.index(i) for i in only})
        if not chosen or not isinstance(exact, (bool, np.bool_)):
            raise RefusedError("nothing is left to check, or exact is neither True nor False")
        if chosen[0] < 0 or chosen[-1] >= len(sets):
            raise RefusedError(f"it has {len(sets)} intervals, counted from 0, and others are to be checked")
        if proofs is None:
            raise RefusedError(f"{path} is a solution without proofs; `solve --certificate` writes them")
        if len(proofs) != len(sets) or sets != certificate.about["sets"]:
            raise RefusedError(f"{path} has no proof for each of its intervals")
        claims = [certificate.tensors[f"solution.{end}_bound"] for end in ("lower", "upper")]
        weights = certificate.tensors["solution.weights"].reshape(-1, certificate.weight.shape[1])
        if any(claim.shape != (len(sets),) for claim in claims) or len(weights) != sum(map(len, sets)):
            raise RefusedError("its bounds or weights are not one for each interval and channel")
        place = {channel: i for i, channel in enumerate(certificate.tensors["solution.channels"].tolist())}
    except RefusedError as error:
        return Report(False, reason=f"{error}.")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return Report(False, reason=f"{path} is no certificate: a part is missing or odd ({error!r}).")

    def interval(i: int) -> Interval:
        lower, upper = float(claims[0][i]), float(claims[1][i])
        rows, kind, reason, derived = sets[i], str(proofs[i].get("kind")), "", None
        try:
            lower, upper = _ends(certificate, i, rows, weights[[place[c] for c in rows]], (lower, upper), exact)
            derived = lower
        except TooLittleError as error:
            reason, derived = f"{error}.", error.lower
        except RefusedError as error:
            reason = f"{error}."
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            reason = f"its proof is incomplete or odd ({error!r})."
        return Interval(tuple(rows), kind, lower, upper, not reason, reason, derived)

    # Compiled searches run side by side; what has not begun is left when somebody interrupts.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        found = list(pool.map(interval, chosen))
    finally:
        pool.shutdown(cancel_futures=True)
    problem = _described(certificate.about["problem"], certificate.tensors)
    left = len(sets) - len(found)
    trusted = (*TRUSTED, f"{left} intervals that were left out") if left else TRUSTED
    return Report(all(interval.valid for interval in found), found, problem, trusted)


def _described(problem: Any, tensors: Any) -> str:
    """What was checked, as far as the file's own words do not say it."""
    parts = [problem["family"]]
    if "problem.grid.codes" in tensors:
        codes = tensors["problem.grid.codes"]
        parts.append(f"{len(codes)} levels a weight, codes from {codes.min():g} to {codes.max():g}")
    if "pattern" in problem:
        parts.append(f"pattern {problem['pattern'] or 'of given units'}, kept {problem['kept']}")
        parts += ["kept weights stay as they are"] if problem.get("refit") is False else []
    return ", ".join(parts)


def _ends(
    certificate: Certificate, index: int, rows: list[int], weights: Any, claims: tuple[float, float], exact: bool
) -> tuple[float, float]:
    """Both ends, derived anew, if they are at least as good as the claims."""
    gram = certificate.gram[certificate.group_of(rows[0])]
    live = np.diag(gram) > 0.0
    constant = sum(map(Fraction, certificate.constant[rows].tolist()), Fraction(0))
    own, target = np.ascontiguousarray(gram[np.ix_(live, live)]), certificate.target[rows][:, live]
    work = Work(certificate, index, rows, live, own, target, constant, exact)
    if not np.all(np.isfinite(weights)):
        raise RefusedError("its weights hold NaN or infinity")
    family = importlib.import_module(f"layerbounds_verify.{_module(work)}")
    family.allow(work, weights)
    upper = constant + sum(errors(work.gram, work.target, weights[:, live], work.metric))
    if not upper <= claims[1]:
        raise RefusedError(f"its weights have an error of {-below(-upper):.17g}, and {claims[1]:.17g} is claimed")
    trivial = work.kind == "trivial" or len(work.gram) == 0
    lower = constant + (0 if trivial else family.lower(work, Fraction(claims[0]) - constant))
    if not lower >= claims[0]:
        raise TooLittleError(below(lower), claims[0])
    if claims[0] > claims[1]:
        raise RefusedError("its lower end is claimed to be above its upper end")
    return below(lower), -below(-upper)


def _module(work: Work) -> str:
    """Where what is allowed and its proofs are read, of which files need no other."""
    problem = work.problem
    if problem["family"] not in _FAMILIES:
        raise RefusedError(f"this checker does not know the family {problem['family']!r} yet")
    if problem["family"] == "pruning" and problem["pattern"].startswith(("transposable", "venom")):
        return "of_tiles"
    several = len(work.rows) > 1 or "units" in work.said or work.has("weights") or "minorants" in work.said
    return "of_rows" if problem["family"] == "pruning" and several else _FAMILIES[problem["family"]]
