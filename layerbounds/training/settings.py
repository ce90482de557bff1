"""What a fine-tuning is asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from layerbounds.arguments import flag, one_of, real_number, shown, whole_number
from layerbounds.exceptions import InputError
from layerbounds.problems.grids import MAX_BITS
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.patterns.base import Pattern
from layerbounds.training.schedule import Action, Part, Schedule

#: The names of `layerbounds.training.quantizers.QUANTIZERS` and `layerbounds.training.ranges.RANGES`, known without
#: PyTorch.
QUANTIZER_NAMES = ("lsq", "minmax", "power-of-two")
RANGE_NAMES = ("learned", "static", "dynamic", "power-of-two")


@dataclass(frozen=True)
class Settings:
    """The arguments of `finetune` that are plain values.

    Raises
    ------
    InputError
        If one is out of range, or they contradict each other or the schedule.
    """

    schedule: Schedule
    bits: int | None = None
    density: float | None = None
    pattern: str | None = None
    quantizer: str = "lsq"
    granularity: str = "channel"
    activation_bits: int | None = None
    activation_density: float | None = None
    activation_ranges: str = "learned"
    window: int = 16
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    scale_rate: float = 1e-4
    distill: float = 0.0
    temperature: float = 4.0
    reestimate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise InputError(f"schedule is {shown(self.schedule)}; pass a Schedule, or text that Schedule.parse reads.")
        for name, bits in (("bits", self.bits), ("activation_bits", self.activation_bits)):
            if bits is not None:
                whole_number(bits, name, 2, MAX_BITS)
        for name, density in (("density", self.density), ("activation_density", self.activation_density)):
            if density is not None:
                real_number(density, name, 0.0, 1.0, "fraction that is kept")
        one_of(self.quantizer, "quantizer", QUANTIZER_NAMES)
        one_of(self.granularity, "granularity", ("tensor", "channel"))
        one_of(self.activation_ranges, "activation_ranges", RANGE_NAMES)
        for name in ("window", "epochs", "batch_size"):
            whole_number(getattr(self, name), name, 1, 10**6)
        whole_number(self.seed, "seed", 0, 2**31)
        for name in ("learning_rate", "scale_rate"):
            real_number(getattr(self, name), name, 0.0)
        real_number(self.distill, "distill", 0.0, 1.0, "share of the loss")
        if real_number(self.temperature, "temperature", 0.0) == 0:
            raise InputError("temperature is 0; pass a positive number.")
        flag(self.reestimate, "reestimate")
        self._check_pattern()
        for action in get_args(Action):
            self._check_schedule(action)

    def _check_pattern(self) -> None:
        rule = self.rule
        if rule is None:
            return
        if rule.rows != 1 or rule.tiled:
            raise InputError(
                f"pattern {rule.label} couples the output channels; choose unstructured, N:M or block:S for training."
            )
        if rule.needs_count and self.density is None:
            raise InputError(f"pattern {rule.label} needs a density; pass the kept fraction.")
        if not rule.needs_count and self.density is not None:
            raise InputError(f"pattern {rule.label} says itself how many inputs are kept; leave out density.")

    def _check_schedule(self, action: Action) -> None:
        """Everything that is asked for has its time, and every time has its action."""
        asked: dict[Part, bool] = {
            "weights": (self.bits if action == "quantize" else self.rule) is not None,
            "activations": (self.activation_bits if action == "quantize" else self.activation_density) is not None,
        }
        names = "bits or activation_bits" if action == "quantize" else "density, pattern or activation_density"
        for part, wanted in asked.items():
            if wanted and self.schedule.phase(action, part) is None:
                raise InputError(f"the schedule does not say when to {action} {part}; add {action}.{part}@START to it.")
        parts = [part for part in asked if self.schedule.phase(action, part) is not None]
        if parts and not any(asked[part] for part in parts):
            raise InputError(f"the schedule says when to {action}, and nothing says how far; pass {names}.")

    @property
    def rule(self) -> Pattern | None:
        """The pattern of the weights, if they are pruned."""
        if self.pattern is None and self.density is None:
            return None
        if self.pattern is not None and not isinstance(self.pattern, str):
            raise InputError(f"pattern is {shown(self.pattern)}; pass a name such as unstructured or 2:4.")
        return parse_pattern("unstructured" if self.pattern is None else self.pattern)

    @property
    def changes_inputs(self) -> bool:
        """Whether activations are compressed."""
        return self.activation_bits is not None or self.activation_density is not None

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**self.__dict__, "schedule": str(self.schedule)}


#: From a batch of the data to the model's input.
Prepare = Callable[[Any], Any]
