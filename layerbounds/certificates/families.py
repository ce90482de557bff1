"""Which proof is stored of which task: by the kind of the lower end, the allowed set, and the dual point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.certificates.boxes import box_leaves
from layerbounds.certificates.dual import MINORANTS, Parts
from layerbounds.certificates.enumeration import enumeration
from layerbounds.certificates.fallback import Claim
from layerbounds.certificates.joint import joint_proof, mask_proof
from layerbounds.certificates.proof import Minorant, Proof
from layerbounds.certificates.rows import PACKED, about_units, has_wide_units
from layerbounds.certificates.scales import explained_codes, scale_proof
from layerbounds.certificates.subsets import subset_leaves
from layerbounds.certificates.tiles import tile_leaves
from layerbounds.certificates.unit_masks import mask_leaves
from layerbounds.certificates.units import channel_leaves, unit_leaves
from layerbounds.problems.free_codebook import FreeLevels
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.levels import Levels
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.problem import Problem
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import BoundKind, Evidence
from layerbounds.search.free_codebook.preparation import prepare_group

#: From a task, what its lower end was derived from, and that end without the constant, to the leaves of a tree
#: (`LeafLog`), or to what an enumeration needs; nothing where that grows too large.
MakeLeaves = Callable[[Task[Any], Evidence, float], Parts]


#: By kind of allowed set.
_LEAVES: dict[type, MakeLeaves] = {
    KeptRows: channel_leaves,
    Levels: enumeration,
    LevelsOnSupport: joint_proof,
    SharedSupport: unit_leaves,
    Support: subset_leaves,
    TiledSupport: tile_leaves,
}


#: By kind of problem.
_EXPLAINED: dict[type, Callable[[Any, Sequence[int], Float], Parts]] = {FreeScaleProblem: explained_codes}
#: Kinds of allowed sets of which all proofs are made in one place.
_WHOLE: dict[type, Callable[[Task[Any], BoundKind, Evidence, float], Proof | None]] = {ScaledLevels: scale_proof}


def proof_of(task: Task[Any], claim: Claim) -> Proof | None:
    """The proof of a lower end that is not trivial; None where none is to be had."""
    if type(task.allowed) in _WHOLE:
        return _WHOLE[type(task.allowed)](task, claim.kind, claim.evidence, claim.lower - task.constant)
    return _of_search(task, claim) if claim.kind == BoundKind.SEARCH else _of_dual(task, claim.evidence.dual)


def explained(problem: Problem, channels: Sequence[int], weights: Float) -> Parts:
    """Tensors by which a checker sees that weights, shape (channels, n), are allowed."""
    found = _EXPLAINED.get(type(problem))
    return {} if found is None else found(problem, channels, weights)


def leaves_of(task: Task[Any]) -> MakeLeaves | None:
    """Which tree proves lower ends of a task."""
    if about_units(task):
        return mask_leaves
    found = _LEAVES.get(type(task.allowed))
    if found is subset_leaves and has_wide_units(task.allowed):
        return unit_leaves
    return mask_proof if found is subset_leaves and not task.allowed.refit else found


def _of_search(task: Task[Any], claim: Claim) -> Proof | None:
    """A search that the checker repeats, or the leaves of a tree."""
    proof = claim.evidence.proof
    if type(task.allowed) is Levels and proof is not None and proof.boxes is not None:
        # Nobody repeats what a best-first search has proven depth first.
        parts = box_leaves(task, proof.boxes, claim.lower - task.constant)
        make = partial(MINORANTS[Levels, type(proof.boxes)], task.gram, task.allowed, proof.boxes)
        return Proof("leaves", parts, [Minorant("minorant", id(proof.boxes), proof.boxes, make)]) if parts else None
    if isinstance(task.allowed, FreeLevels):
        return Proof("divisions", {"d": prepare_group(task.gram).d})
    said = {"units": True} if about_units(task) else {}
    leaves = leaves_of(task)
    parts = {} if leaves is None else leaves(task, claim.evidence, claim.lower - task.constant)
    return Proof("enumeration" if "order" in parts else "leaves", parts, said=said) if parts else None


def _of_dual(task: Task[Any], dual: Any) -> Proof | None:
    """A dual point and its minorant, or those of several rows."""
    pair, kind = (type(task.allowed), type(dual)), str(BoundKind.DUAL)
    if pair in PACKED:
        packed = PACKED[pair](task, dual)
        minorants = [Minorant("minorants", key, dual, partial(dict, own)) for key, own in packed.minorants]
        return Proof(kind, packed.parts, minorants, True, {"units": True} if about_units(task) else {})
    if pair not in MINORANTS:
        return None
    parts = {"z": np.asarray(dual.z, dtype=np.float64)}
    split = getattr(dual, "split", None)
    if split is not None:
        parts["multipliers"] = np.asarray(split.multipliers, dtype=np.float64)
    # Forms belong to one point.
    shared = dual if split is not None else dual.minorant
    make = partial(MINORANTS[pair], task.gram, task.allowed, dual)
    return Proof(kind, parts, [Minorant("minorant", id(shared), shared, make)])
