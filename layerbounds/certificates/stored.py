"""Proofs for certificates: what each lower end was derived from, as tensors (docs/certificates.md).

Where no table has a proof of a lower end, or none of a size that a file can hold, less is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.fallback import Claim, by_dual, trivial
from layerbounds.certificates.families import proof_of
from layerbounds.certificates.log import TooLargeError, limited
from layerbounds.certificates.proof import Proof
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import GroupTasks, Task
from layerbounds.proofs import BoundKind

#: Lower ends that are lowered by a smaller share than this are not announced.
ALIKE = 1e-9
#: Seconds in which a proof has to be found: these, and a multiple of those of the search.
LEAST_SECONDS, MORE_SECONDS = 3.0, 2.0


class StoredProofs:
    """The proofs of a certificate.

    Parameters
    ----------
    problem : Problem
    sets : sequence of list of int
    claims : sequence of Claim
        What is asked for; without evidence, where it has been lost.
    weights : sequence of ndarray of shape (n,) or (rows, n)
        Allowed weights of each set, dead inputs included.
    seconds : sequence of float
        How long each set was worked on.

    Attributes
    ----------
    claims : list of Claim
        What is proven.
    about : list of dict
        What the metadata say of the proof of each set of rows.
    """

    def __init__(
        self,
        problem: Problem,
        sets: Sequence[list[int]],
        claims: Sequence[Claim],
        weights: Sequence[Float],
        seconds: Sequence[float],
    ) -> None:
        self._asked, self._seconds = claims, seconds
        self.claims: list[Claim] = list(claims)
        self.about: list[dict[str, Any]] = [{} for _ in claims]
        self._parts: list[Parts] = [{} for _ in claims]
        self._minorants: dict[tuple[Any, int], tuple[int, object]] = {}
        self._shared: dict[str, NDArray[Any]] = {}
        members: dict[int, list[int]] = {}
        for index, rows in enumerate(sets):
            members.setdefault(problem.layer.group_of(rows[0]), []).append(index)
        self._tasks: dict[int, tuple[GroupTasks, int, int]] = {}
        for group, own in members.items():
            tasks = GroupTasks(problem, [sets[i] for i in own], None, [weights[i] for i in own])
            self._tasks |= {index: (tasks, place, group) for place, index in enumerate(own)}
        for index, claim in enumerate(claims):
            self._prove(index, claim)

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """By their names in the file."""
        found = dict(self._shared)
        for index, parts in enumerate(self._parts):
            found |= {f"proof.{index}.{part}": array for part, array in parts.items()}
        return found

    @property
    def lowered(self) -> list[int]:
        """The sets whose lower ends are smaller than what was asked for."""
        return [
            index
            for index, (claim, asked) in enumerate(zip(self.claims, self._asked, strict=True))
            if claim.lower < asked.lower - ALIKE * abs(asked.lower)
        ]

    def weaken(self, index: int, lower: float | None) -> None:
        """After a refusal: claim what a checker could derive, or else what simpler evidence proves."""
        claim, task = self.claims[index], self._task(index)
        derived = None if lower is None or lower >= claim.lower else replace(claim, lower=lower)
        if derived is not None and derived.lower >= claim.lower - ALIKE * abs(claim.lower):
            self.claims[index] = derived
            return
        if claim.kind == BoundKind.SEARCH:
            smaller = by_dual(task, claim.evidence, self._seconds[index]).at_most(claim.lower)
            better = derived is None or smaller.lower > derived.lower
            if better and self._put(index, smaller, _proof(task, smaller)):
                return
        if derived is not None and derived.lower > trivial(task).lower:
            self.claims[index] = derived
        else:
            self._put(index, trivial(task), Proof(str(BoundKind.TRIVIAL), {}))

    def _task(self, index: int) -> Task[Any]:
        tasks, place, _ = self._tasks[index]
        return tasks[place]

    def _prove(self, index: int, claim: Claim) -> None:
        """Prove a claim; where no proof is to be had, a smaller one."""
        lost = claim.kind != BoundKind.TRIVIAL and claim.evidence.dual is None and claim.evidence.proof is None
        if lost:
            found = by_dual(self._task(index), claim.evidence, self._seconds[index])
            kind = found.kind if found.lower >= claim.lower else BoundKind.SEARCH
            claim = Claim(claim.lower, kind, found.evidence)
        with limited(LEAST_SECONDS + MORE_SECONDS * self._seconds[index]):
            proof = _proof(self._task(index), claim)
        if not self._put(index, claim, proof):
            self._fall_back(index, claim)

    def _fall_back(self, index: int, claim: Claim) -> None:
        """Claim what a dual point proves, or the constant alone."""
        task = self._task(index)
        smaller = by_dual(task, claim.evidence, self._seconds[index]).at_most(claim.lower)
        if not self._put(index, smaller, _proof(task, smaller)):
            self._put(index, trivial(task), Proof(str(BoundKind.TRIVIAL), {}))

    def _put(self, index: int, claim: Claim, proof: Proof | None) -> bool:
        """Store a proof; a minorant that several sets have in common is proven and stored once."""
        if proof is None:
            return False
        said: dict[str, Any] = {"kind": proof.kind, **proof.said}
        for minorant in proof.minorants:
            key = minorant.key, self._tasks[index][2]
            if key not in self._minorants:
                own = minorant.make()
                if not own:
                    return False
                # What is shared is kept, so that no other object gets its identity.
                number = len(self._minorants)
                self._minorants[key] = number, minorant.shared
                self._shared |= {f"proof.minorant.{number}.{part}": array for part, array in own.items()}
            number = self._minorants[key][0]
            if proof.several:
                said.setdefault(minorant.place, []).append(number)
            else:
                said[minorant.place] = number
        self.claims[index], self.about[index], self._parts[index] = claim, said, proof.parts
        return True


def _proof(task: Task[Any], claim: Claim) -> Proof | None:
    trivially = claim.kind == BoundKind.TRIVIAL
    try:
        return Proof(str(BoundKind.TRIVIAL), {}) if trivially else proof_of(task, claim)
    except TooLargeError:
        return None
