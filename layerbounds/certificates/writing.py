"""A certificate that is checked before it is handed out: what a checker refuses is claimed in a weaker form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from layerbounds.certificates.fallback import Claim
from layerbounds.certificates.families import explained
from layerbounds.certificates.stored import StoredProofs
from layerbounds.certify.interval import settled
from layerbounds.certify.solution_file import write_solution
from layerbounds.exceptions import CertificationError
from layerbounds.proofs import Evidence
from layerbounds_verify import verify

#: A lower end is weakened at most so often: what is derived, a dual point, what that proves, the constant.
MOST_ROUNDS = 6


def write_certificate(
    path: str | os.PathLike[str],
    values: Mapping[str, Any],
    evidence: Sequence[Evidence],
    weights: Sequence[Any],
    *,
    by_hash: bool,
) -> list[list[int]]:
    """Write the certificate of a solution; returns the sets whose lower ends are smaller in it.

    Parameters
    ----------
    path : path-like
    values : mapping
        The fields of a `layerbounds.Solution`.
    evidence : sequence of Evidence
    weights : sequence of ndarray of shape (n,) or (rows, n)
        Of each set.
    by_hash : bool
        Whether of the layer's arrays only their SHA-256 is stored.

    Raises
    ------
    CertificationError
        If the checker refuses the file as a whole.
    """
    problem, sets = values["problem"], values["sets"]
    claims = [Claim(*c) for c in zip(values["lower_bound"].tolist(), values["bound_kind"], evidence, strict=True)]
    proofs = StoredProofs(problem, sets, claims, weights, values["seconds"].tolist())
    matrix = values["weights"].reshape(len(values["channels"]), -1)
    codes = explained(problem, values["channels"], matrix)
    with TemporaryDirectory() as folder:
        draft = Path(folder) / "certificate.safetensors"
        left = list(range(len(sets)))
        for _ in range(MOST_ROUNDS):
            _write(draft, values, proofs, codes, by_hash=False)
            report = verify(draft, only=left)
            refused = {i: found for i, found in zip(left, report.channels, strict=False) if not found.valid}
            if report.reason or not refused:
                break
            left = list(refused)
            for i, found in refused.items():
                proofs.weaken(i, found.derived)
        if not report:
            reason = report.reason or next(iter(refused.values())).reason
            raise CertificationError(f"the certificate's own checker refuses it: {reason}")
    _write(path, values, proofs, codes, by_hash=by_hash)
    return [sets[i] for i in proofs.lowered]


def _write(
    path: str | os.PathLike[str], values: Mapping[str, Any], proofs: StoredProofs, codes: Any, *, by_hash: bool
) -> None:
    lower = np.array([claim.lower for claim in proofs.claims])
    ends = zip(lower.tolist(), values["upper_bound"].tolist(), values["energy"].tolist(), values["status"], strict=True)
    status = [
        settled(low, upper, 0.0, energy, before) if i in proofs.lowered else before
        for i, (low, upper, energy, before) in enumerate(ends)
    ]
    kinds = [claim.kind for claim in proofs.claims]
    about = {"proofs": proofs.about, "lowered": [values["sets"][i] for i in proofs.lowered]}
    said = {**values, "lower_bound": lower, "bound_kind": kinds, "status": status}
    write_solution(path, said, by_hash=by_hash, tensors=proofs.tensors | codes, about=about)
