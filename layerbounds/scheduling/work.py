"""The work of one backend on sets of rows: solve, and certify."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from layerbounds.arrays import Float
from layerbounds.bounds.rows import load_tables
from layerbounds.certify.group import certify_group
from layerbounds.certify.interval import CertifiedChannel, certify, certify_foreign
from layerbounds.exceptions import LayerboundsError
from layerbounds.kernels.compilation import working_time
from layerbounds.problems.tasks import GroupTasks, Task
from layerbounds.proofs import Control, Dual, RawSolve, Status
from layerbounds.scheduling.budget import Budget
from layerbounds.scheduling.request import USUAL_LIMIT, Request
from layerbounds.search.families import root_dual
from layerbounds.solvers.base import Backend, Capability, GroupBackend

#: Share of the time limit that the root's dual point may take after a foreign solver has ended, its least seconds, and
#: its seconds after an interruption.
DUAL_SHARE, DUAL_SECONDS, DUAL_INTERRUPTED = 0.2, 1.0, 0.5
#: Large matrices need some factorizations: seconds per cubed number of inputs, and the most seconds.
DUAL_CUBIC, DUAL_MOST = 5e-8, 60.0
#: Seconds per squared number of inputs that certification takes, and the most of the time limit that is kept for it.
CERTIFY_SQUARE, CERTIFY_MOST = 1.2e-7, 0.5
#: The same of a group: seconds per multiplication of its proof and its product.
CERTIFY_PRODUCT = 1.5e-10


@dataclass(frozen=True, eq=False)
class Finished:
    """A certified set of rows.

    Attributes
    ----------
    index : int
    certified : CertifiedChannel
    seconds : float
    nodes : int
    dual : Dual or None
        What the lower end was derived from, where another backend may go on from there.
    lower_backend, upper_backend : str
        What gave each end.
    """

    index: int
    certified: CertifiedChannel
    seconds: float
    nodes: int
    dual: Dual | None
    lower_backend: str
    upper_backend: str


@dataclass(frozen=True, eq=False)
class Work:
    """Some sets of a request, for one backend.

    Attributes
    ----------
    request : Request
    solver : Backend
    own : bool
        Whether the backend's proofs are those of the package's own searches.
    members : dict of int to list of int
        The sets of each Gram group, in the order in which they are begun.
    tasks : dict of int to GroupTasks
        Their tasks.
    options : mapping
        The backend's options, complete.
    budget : Budget
        Seconds of the pieces.
    limit : float
        Seconds of a set.
    rows_at_once : dict of int to int
        For each group, how many sets the backend gets at a time where it takes whole groups.
    """

    request: Request
    solver: Backend
    own: bool
    members: dict[int, list[int]]
    tasks: dict[int, GroupTasks]
    options: dict[str, Any]
    budget: Budget
    limit: float
    rows_at_once: dict[int, int]

    @property
    def whole(self) -> bool:
        """Whether the backend takes whole groups."""
        return takes_groups(self.solver)

    def units(self, order: Sequence[int] | None = None) -> list[Callable[[], list[Finished]]]:
        """What can be done side by side: a set each, or a group each where the backend takes whole groups.

        Parameters
        ----------
        order : sequence of int, optional
            In which the sets are begun; default: as they are numbered.
        """
        load_tables()
        if self.whole:
            return [partial(self.together, group) for group in self.members]
        places = {index: (group, place) for group, m in self.members.items() for place, index in enumerate(m)}
        return [partial(self.alone, index, *places[index]) for index in order or sorted(places)]

    def alone(self, index: int, group: int, place: int) -> list[Finished]:
        """Solve and certify one set."""
        with self.budget.piece(self.limit) as seconds:
            return [self.solved(index, self.tasks[group][place], seconds)]

    def solved(self, index: int, task: Task[Any], seconds: float) -> Finished:
        """Solve and certify one set within some seconds."""
        kept = min(CERTIFY_SQUARE * len(task.gram) ** 2, CERTIFY_MOST * seconds) if self.own else 0.0
        control = self.control(self.request.gaps[index], seconds - kept)
        raw = self.solver.solve(task, control) if self.own else self.foreign([task], control)[0]
        return self.certified(index, task, raw, control, 1)

    def together(self, group: int) -> list[Finished]:
        """Solve the sets of a group, as many at once as fit into memory, and certify each."""
        members, tasks = self.members[group], self.tasks[group]
        at_once = self.rows_at_once.get(group, len(members))
        finished: list[Finished] = []
        with self.budget.piece(self.limit * len(members)) as seconds:
            end = working_time() + seconds
            for begin in range(0, len(members), at_once):
                chunk = slice(begin, min(begin + at_once, len(members)))
                left = max(end - working_time(), 0.0)
                share = left * (chunk.stop - begin) / (len(members) - begin)
                finished += self._chunk(members[chunk], tasks[chunk], share)
        return finished

    def _chunk(self, members: list[int], tasks: Sequence[Task[Any]], seconds: float) -> list[Finished]:
        """Solve some sets of a group at once."""
        gaps = [self.request.gaps[i] for i in members]
        n = len(tasks[0].gram)
        product = CERTIFY_PRODUCT * n**2 * (n + len(members))
        control = self.control(min(gaps), seconds - (min(product, CERTIFY_MOST * seconds) if self.own else 0.0))
        if not self.own:
            triples = zip(members, tasks, self.foreign(tasks, control), strict=True)
            return [self.certified(i, task, raw, control, len(tasks)) for i, task, raw in triples]
        raws = self.grouped(tasks, control)
        certified = list(certify_group(tasks, raws, gaps))
        share = control.elapsed() / len(members)
        return [self.kept(i, c, raw, share) for i, c, raw in zip(members, certified, raws, strict=True)]

    def grouped(self, tasks: Sequence[Task[Any]], control: Control) -> Sequence[RawSolve]:
        """The answers of a backend that takes whole groups."""
        return cast(GroupBackend, self.solver).solve_group(tasks, control)

    def foreign(self, tasks: Sequence[Task[Any]], control: Control) -> list[RawSolve]:
        """Let a foreign solver work; what it does wrong becomes a note instead of an end of the run."""
        try:
            raws = list(self.grouped(tasks, control) if self.whole else [self.solver.solve(t, control) for t in tasks])
            if len(raws) != len(tasks):
                raise ValueError(f"{len(raws)} answers for {len(tasks)} channels")
        except LayerboundsError:
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            return [RawSolve(None, Status.FAILED, notes=(f"the solver ended with an error: {text}",)) for _ in tasks]
        late = control.elapsed() - control.time_limit
        if late > max(0.05 * control.time_limit, 0.2):
            note = f"the solver took {late:.1f} s more than the time limit"
            raws = [replace(raw, notes=(*raw.notes, note)) for raw in raws]
        return raws

    def control(self, gap: float, seconds: float) -> Control:
        """The limits of a piece that begins now."""
        request = self.request
        pieces = len(self.members) if self.whole else sum(map(len, self.members.values()))
        threads = max(request.threads // pieces, 1)
        return Control(
            seconds, gap, request.node_limit, request.seed, threads, request.cancel, options=self.options,
            report=request.report,
        )  # fmt: skip

    def certified(self, index: int, task: Task[Any], raw: RawSolve, control: Control, share: int) -> Finished:
        """Certify an answer; ``share`` sets share the time."""
        seconds = control.elapsed()
        if self.own:
            result = certify(task, raw, self.request.gaps[index])
            return self.kept(index, result, raw, control.elapsed() / share)
        derived = False

        def derive(weights: Float | None) -> Dual | None:
            nonlocal derived
            derived = True
            # After Ctrl-C a channel that was worked on still gets a short look; the others must not delay the end.
            left = DUAL_INTERRUPTED if seconds > DUAL_INTERRUPTED else 0.0
            cubic = min(DUAL_CUBIC * len(task.gram) ** 3, DUAL_MOST)
            allowed = left if control.cancel.is_set() else max(DUAL_SHARE * control.time_limit, DUAL_SECONDS, cubic)
            return root_dual(task, weights, allowed)

        result = certify_foreign(task, raw, self.request.gaps[index], derive)
        return self.kept(index, result, raw, seconds / share, "native" if derived else None)

    def kept(
        self, index: int, certified: CertifiedChannel, raw: RawSolve, seconds: float, lower: str | None = None
    ) -> Finished:
        """A result with what is known about it; ``lower`` is what gave the lower end, if that was not the backend."""
        dual = raw.dual if self.own else None
        name = self.solver.name
        return Finished(index, certified, seconds, raw.nodes, dual, lower or name, name)


def takes_groups(solver: Backend) -> bool:
    """Whether a backend may be handed all tasks of a group at once."""
    return hasattr(solver, "solve_group")


def limit_of(solver: Backend, request: Request) -> float:
    """Seconds of a set: as asked for, or what is usual for a backend that works as long as it is given time."""
    if request.time_limit is not None:
        return request.time_limit
    unlimited = request.total_time is not None or Capability.BATCHED in solver.capabilities
    return math.inf if unlimited else USUAL_LIMIT
