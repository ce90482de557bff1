"""All scales: dual points as tensors, and the codes that explain weights (docs/certificates.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift
from layerbounds.bounds.quantization.cuts import certified_weights
from layerbounds.bounds.scale.projection import project
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.proof import Minorant, Proof
from layerbounds.certificates.rays import ray_search
from layerbounds.certificates.shared_scale import shared_scale_search
from layerbounds.exceptions import InputError
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import BoundKind, Evidence, ScaleDual, ScaleMinorant


def explained_codes(problem: FreeScaleProblem, channels: Sequence[int], weights: Float) -> dict[str, NDArray[Any]]:
    """The codes of weights over all scales, of the list to which they belong.

    Parameters
    ----------
    problem : FreeScaleProblem
    channels : sequence of int
    weights : ndarray of shape (channels, n)
    """
    codes = np.zeros(weights.shape)
    place = {channel: i for i, channel in enumerate(channels)}
    for rows in problem.sets(channels):
        allowed, own = problem.allowed(rows[0]), [place[row] for row in rows]
        values = weights[own] if allowed.rows > 1 else weights[own[0]]
        fit = allowed.closest(values)[0]
        zero = fit.zero_point if allowed.zero == "integer" else np.zeros(allowed.groups)
        codes[own] = np.where(fit.scale < 0, -1.0, 1.0)[allowed.group] * (fit.codes - zero[allowed.group]) + 0.0
    return {"solution.codes": codes}


class ScaleMinorants:
    """What the minorants of dual points over scales become, for one task."""

    def __init__(self, task: Task[ScaledLevels], dropped: tuple[int, ...]) -> None:
        self.gram = task.gram
        found = project(task.gram, task.allowed.group, dropped) if dropped else None
        reduced = task.gram if found is None else found[0]
        self.shifted = semidefinite_shift(reduced)

    def parts(self, minorant: ScaleMinorant) -> Parts:
        """A minorant as certification proves it; nothing where it cannot."""
        if self.shifted is None:
            return {}
        matrix, shift = self.shifted
        d, weights = np.asarray(minorant.d, dtype=np.float64), np.asarray(minorant.weights, dtype=np.float64)
        more: Parts = {"shift": shift} if np.any(shift) else {}
        if not weights.size:
            return {"d": certified_minorant(matrix, d), **more}
        forms = np.asarray(minorant.forms, dtype=np.float64)
        d, weights = certified_weights(matrix, forms, d, weights)
        return {"d": d, "forms": forms, "weights": weights, **more}

    def around(self) -> Parts:
        """A diagonal below the whole matrix, which bounds how far weights are from the target."""
        whole = semidefinite_shift(self.gram)
        if whole is None:
            return {}
        more = {"shift": whole[1]} if np.any(whole[1]) else {}
        return {"d": certified_minorant(whole[0], interior_start(whole[0])), **more}


def scale_proof(task: Task[ScaledLevels], kind: BoundKind, found: Evidence, lower: float) -> Proof | None:
    """The proof of a lower end over all scales; None where none is to be had.

    Parameters
    ----------
    task : Task
    kind : BoundKind
    found : Evidence
    lower : float
        The claimed lower end without the constant.
    """
    find = shared_scale_search if task.allowed.rows > 1 else ray_search
    try:
        searched = find(task, lower) if kind == BoundKind.SEARCH else None
    except InputError:
        # A matrix of the search cannot be factorized.
        return None
    minorants: tuple[ScaleMinorant, ...]
    if searched is not None:
        parts, minorants = searched[0], searched[1:]
        dropped = tuple(parts.get("dropped", np.zeros(0, dtype=np.int32)).tolist())
    elif kind == BoundKind.DUAL and isinstance(found.dual, ScaleDual):
        parts, dropped, minorants = _points(found.dual), found.dual.dropped, found.dual.minorants
    else:
        return None
    of = ScaleMinorants(task, dropped)
    keys = [id(one) if searched is None else one.d.tobytes() for one in minorants]
    named = [Minorant("minorants", key, one, partial(of.parts, one)) for key, one in zip(keys, minorants, strict=True)]
    if dropped:
        named.append(Minorant("around", "around", None, of.around))
    return Proof("scales" if kind == BoundKind.SEARCH else str(kind), parts, named, several=True)


def _points(dual: ScaleDual) -> Parts:
    """Trees and points; multipliers are padded."""
    most = max(np.shape(point.multipliers)[1] for point in dual.points)
    multipliers = np.zeros((len(dual.points), len(dual.points[0].z), most))
    for row, point in zip(multipliers, dual.points, strict=True):
        row[:, : np.shape(point.multipliers)[1]] = point.multipliers
    parts: Parts = {name: np.asarray(getattr(dual, name), dtype=np.int32) for name in ("axis", "child", "root")}
    parts |= {
        "at": np.asarray(dual.at, dtype=np.float64),
        "z": np.array([point.z for point in dual.points], dtype=np.float64),
        "minorant": np.array([point.minorant for point in dual.points], dtype=np.int32),
    }
    if most:
        parts["multipliers"] = multipliers
    if dual.dropped:
        parts["dropped"] = np.array(dual.dropped, dtype=np.int32)
    return parts
