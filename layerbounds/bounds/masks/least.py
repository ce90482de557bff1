"""Certified minima of masks that leave kept weights as they are (docs/numerics.md)."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.masks.clusters import blocks_bound
from layerbounds.bounds.masks.dual import mask_bound
from layerbounds.bounds.masks.form import MaskForm, unit_form
from layerbounds.exceptions import CertificationError
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.proofs import MaskBlocksDual, MaskDual


def shared(gram: Float, target: Float, allowed: SharedSupport, dual: MaskDual) -> float:
    """Of several rows that share units of inputs."""
    form = _form(gram, target, allowed)
    return mask_bound(form, np.asarray(dual.z, dtype=np.float64), np.asarray(dual.d, dtype=np.float64))


def shared_blocks(gram: Float, target: Float, allowed: SharedSupport, dual: MaskBlocksDual) -> float:
    """The same from blocks."""
    return blocks_bound(_form(gram, target, allowed), dual)


def _form(gram: Float, target: Float, allowed: SharedSupport) -> MaskForm:
    if allowed.refit:
        raise CertificationError("the backend returned a dual point of masks for weights that may take any value.")
    return unit_form(gram, np.atleast_2d(target), allowed.original, allowed.structure)


LEAST = {(SharedSupport, MaskDual): shared, (SharedSupport, MaskBlocksDual): shared_blocks}
