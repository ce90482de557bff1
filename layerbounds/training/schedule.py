"""What starts and ends when: pruning and quantization over the course of a training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from layerbounds.arguments import real_number, shown, whole_number
from layerbounds.exceptions import InputError

Action = Literal["prune", "quantize"]
Part = Literal["weights", "activations"]
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_PHASE = re.compile(rf"(prune|quantize)(?:\.(weights|activations))?@({_NUMBER})(?::({_NUMBER}))?(?:/(\d+))?")


@dataclass(frozen=True)
class Phase:
    """One action on one part of the layers, from where it starts to where it has found its form.

    Attributes
    ----------
    action : {"prune", "quantize"}
    part : {"weights", "activations"}
    start, end : float
        Fractions of the training. Pruning: the share of pruned weights grows between them. Quantization: everything is
        quantized from the start on, and ranges and step sizes are adapted up to the end.
    steps : int, optional
        In how many equal steps pruning goes from start to end; default: at every step of the training.

    Examples
    --------
    >>> from layerbounds.training import Phase
    >>> print(Phase("prune", "weights", 0.2, 0.5))
    prune.weights@0.2:0.5
    """

    action: Action
    part: Part
    start: float
    end: float
    steps: int | None = None

    def __post_init__(self) -> None:
        real_number(self.start, f"the start of {self.action}", 0.0, 1.0)
        real_number(self.end, f"the end of {self.action}", 0.0, 1.0)
        if self.end < self.start:
            raise InputError(f"{self.action} ends at {self.end:g}, before its start at {self.start:g}; swap them.")
        if self.steps is not None:
            whole_number(self.steps, "the number of steps", 1)
            if self.action != "prune":
                raise InputError("only pruning goes in steps; leave out the number of steps of quantize.")

    def on(self, progress: float) -> bool:
        """Whether it has started, at this fraction of the training.

        Examples
        --------
        >>> from layerbounds.training import Phase
        >>> Phase("prune", "weights", 0.2, 0.5).on(0.7)
        True
        """
        return progress >= self.start

    def adapting(self, progress: float) -> bool:
        """Whether masks, ranges or step sizes are still looked for.

        Examples
        --------
        >>> from layerbounds.training import Phase
        >>> Phase("prune", "weights", 0.2, 0.5).adapting(0.7)
        False
        """
        return self.start <= progress < self.end

    def share(self, progress: float) -> float:
        """How much of what is to be pruned is pruned, from 0 to 1.

        1 − (1 − t)³ with t from 0 at the start to 1 at the end (Zhu and Gupta, "To prune, or not to prune", 2017,
        equation 1). Steps are taken at their ends, as in the released code of Zhang et al. (arXiv 2110.08271).

        Examples
        --------
        >>> from layerbounds.training import Phase
        >>> Phase("prune", "weights", 0.0, 1.0).share(0.5)
        0.875
        """
        if progress < self.start:
            return 0.0
        if progress >= self.end:
            return 1.0
        t = (progress - self.start) / (self.end - self.start)
        if self.steps is not None:
            # Guarded against 0.3/0.1 = 2.999….
            t = int(t * self.steps + 1e-9) / self.steps
        return 1.0 - (1.0 - t) ** 3

    def __str__(self) -> str:
        """In the form that `Schedule.parse` reads."""
        end = "" if self.end == self.default_end(self.action, self.start) else f":{self.end:g}"
        return f"{self.action}.{self.part}@{self.start:g}{end}" + ("" if self.steps is None else f"/{self.steps}")

    @staticmethod
    def default_end(action: Action, start: float) -> float:
        """Pruning without an end happens at once; quantization without one adapts until the training ends.

        Examples
        --------
        >>> from layerbounds.training import Phase
        >>> Phase.default_end("prune", 0.2), Phase.default_end("quantize", 0.2)
        (0.2, 1.0)
        """
        return start if action == "prune" else 1.0


@dataclass(frozen=True)
class Schedule:
    """The phases of a training; each action has at most one on each part.

    Attributes
    ----------
    phases : tuple of Phase

    Examples
    --------
    >>> from layerbounds.training import Schedule
    >>> schedule = Schedule.parse("prune@0.2:0.5 quantize@0.6")
    >>> round(schedule.phase("prune", "weights").share(0.35), 3)
    0.875
    >>> schedule.order("weights")
    'prune, quantize'
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if not self.phases:
            raise InputError("the schedule has no phase; write one such as 'prune@0.2:0.5 quantize@0.6'.")
        seen = [(phase.action, phase.part) for phase in self.phases]
        for action, part in seen:
            if seen.count((action, part)) > 1:
                raise InputError(f"the schedule says twice when to {action} {part}; say it once.")

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read phases separated by blanks: ``ACTION[.PART]@START[:END][/STEPS]``.

        Parameters
        ----------
        text : str
            ``ACTION`` is ``prune`` or ``quantize``; ``PART`` is ``weights`` or ``activations``, by default both; START
            and END are fractions of the training; STEPS is for pruning.

        Raises
        ------
        InputError
            If it cannot be read.

        Examples
        --------
        >>> from layerbounds.training import Schedule
        >>> len(Schedule.parse("prune.weights@0:0.5/4 quantize@0.6").phases)
        3
        """
        if not isinstance(text, str):
            raise InputError(f"schedule is {shown(text)}; pass text such as 'prune@0.2:0.5 quantize@0.6'.")
        phases: list[Phase] = []
        for word in text.split():
            match = _PHASE.fullmatch(word)
            if match is None:
                raise InputError(
                    f"the schedule cannot be read at {word!r}; write ACTION[.PART]@START[:END][/STEPS], such as "
                    "prune@0.2:0.5 or quantize.weights@0.6."
                )
            action: Action = "prune" if match[1] == "prune" else "quantize"
            start = float(match[3])
            end = Phase.default_end(action, start) if match[4] is None else float(match[4])
            steps = None if match[5] is None else int(match[5])
            parts: tuple[Part, ...] = get_args(Part) if match[2] is None else (match[2],)
            phases += [Phase(action, part, start, end, steps) for part in parts]
        return cls(tuple(phases))

    def phase(self, action: Action, part: Part) -> Phase | None:
        """When this is done to that, if it is.

        Examples
        --------
        >>> from layerbounds.training import Schedule
        >>> Schedule.parse("quantize.weights@0.6").phase("quantize", "weights").start
        0.6
        """
        return next((p for p in self.phases if p.action == action and p.part == part), None)

    def order(self, part: Part) -> str:
        """The actions on a part in the order of their starts.

        Examples
        --------
        >>> from layerbounds.training import Schedule
        >>> Schedule.parse("quantize@0.1 prune@0.4:0.8").order("weights")
        'quantize, prune'
        """
        phases = sorted((p for p in self.phases if p.part == part), key=lambda p: p.start)
        return ", ".join(phase.action for phase in phases)

    def __str__(self) -> str:
        """In the form that `parse` reads."""
        return " ".join(map(str, self.phases))
