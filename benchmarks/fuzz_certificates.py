"""The checker of certificates and the solver against each other, and both against the exact optimum."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import layerbounds as lb
from layerbounds.certify.solution_file import SOLUTIONS
from layerbounds.exceptions import UnprovenWarning
from layerbounds.layers.files import write_tensors
from layerbounds.layers.sealed_files import DIGEST_KEY, digest
from layerbounds.layers.tensor_files import read_tensors

#: Claims are raised above the truth by this share.
RAISED = 1e-7


def wrong_certificate(solution: lb.Solution, optima: Sequence[Fraction]) -> tuple[int, list[str]]:
    """How many lower ends are smaller in a solution's certificate, and what is wrong with it, or with its checker.

    The certificate has to hold; no lower end that the checker derives may exceed the optimum; and where lower ends are
    raised above it all of them have to be refused, a search because the checker's own finds weights below the claim.

    Parameters
    ----------
    solution : Solution
    optima : sequence of Fraction
        Of each set of rows.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "certificate.safetensors"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnprovenWarning)
            solution.save_certificate(path)
        lowered = len(json.loads(read_tensors(path)[1][SOLUTIONS.key])["lowered"])
        return lowered, list(_wrong_file(path, optima))


def _wrong_file(path: Path, optima: Sequence[Fraction]) -> Iterator[str]:
    report = lb.verify(path)
    if not report:
        yield from (report.reason, *(f"channel {c.rows[0]}: {c.reason}" for c in report.channels if c.reason))
        return
    for found, optimum in zip(report.channels, optima, strict=True):
        if Fraction(found.lower_bound) > optimum:
            yield f"channel {found.rows[0]}: {found.lower_bound!r} is verified, the optimum is {float(optimum)!r}"
    above = np.array([np.nextafter(float(optimum) * (1.0 + RAISED), np.inf) for optimum in optima])
    change(path, lambda t, about: t.update({"solution.lower_bound": above, "solution.upper_bound": 2.0 * above}))
    for found, kind in zip(lb.verify(path).channels, report.channels, strict=True):
        if found.valid:
            yield f"channel {found.rows[0]}: a lower end above the optimum is accepted"
        elif kind.kind == "enumeration" and "smaller error" not in found.reason:
            yield f"channel {found.rows[0]}: a search that should have found weights says: {found.reason}"


def change(path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change the tensors and metadata of a solution's file, and give it the digest of what it then holds."""
    read, metadata = read_tensors(path)
    tensors, about = dict(read), json.loads(metadata[SOLUTIONS.key])
    edit(tensors, about)
    text = json.dumps(about)
    write_tensors(path, tensors, {**metadata, SOLUTIONS.key: text, DIGEST_KEY: digest(tensors, text)})
