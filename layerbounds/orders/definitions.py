"""What is compared: orders of pruning and quantization, each defined stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from layerbounds.arguments import members, shown
from layerbounds.exceptions import InputError
from layerbounds.names import match_name


class Kind(StrEnum):
    """What a stage does to each output channel."""

    #: Choose the mask and re-optimise the kept weights.
    PRUNE_REFIT = "prune, refit"
    #: Choose the mask; kept weights stay as they are.
    PRUNE_MASK = "prune, mask only"
    #: Choose a level for every weight that is not pruned.
    QUANTIZE = "quantize"


class Target(StrEnum):
    """What a stage measures its error against."""

    #: The output of the dense layer, as f does.
    LAYER = "the dense layer"
    #: The output of the weights that it was given.
    PREVIOUS = "the previous stage"


@dataclass(frozen=True)
class Stage:
    """One step of an order.

    Attributes
    ----------
    kind : Kind
    target : Target
    """

    kind: Kind
    target: Target = Target.LAYER

    def __str__(self) -> str:
        return f"{self.kind} (towards {self.target})"


@dataclass(frozen=True)
class Order:
    """Stages that follow one another.

    Attributes
    ----------
    name : str
    stages : tuple of Stage
    summary : str
    """

    name: str
    stages: tuple[Stage, ...]
    summary: str

    @property
    def prunes_first(self) -> bool:
        """Whether the mask is chosen before any weight is quantized."""
        return self.stages[0].kind != Kind.QUANTIZE

    @property
    def definition(self) -> str:
        """The stages in words."""
        return f"{self.summary}: {'; then '.join(map(str, self.stages))}"


_REFIT, _MASK, _QUANTIZE = Stage(Kind.PRUNE_REFIT), Stage(Kind.PRUNE_MASK), Stage(Kind.QUANTIZE)

#: The orders by name.
ORDERS: dict[str, Order] = {
    order.name: order
    for order in (
        Order("PQ", (_REFIT, _QUANTIZE), "prune with refit, then quantize what is kept"),
        Order("MQ", (_MASK, _QUANTIZE), "choose a mask of the dense weights, then quantize what is kept"),
        Order(
            "MQb",
            (_MASK, Stage(Kind.QUANTIZE, Target.PREVIOUS)),
            "choose a mask of the dense weights, then quantize the masked weights as if they were the dense ones",
        ),
        Order("QP", (_QUANTIZE, _MASK), "quantize, then choose a mask of the quantized weights"),
        Order("QPQ", (_QUANTIZE, _MASK, _QUANTIZE), "quantize, choose a mask, then quantize what is kept again"),
    )
}

#: Where the scales of a quantization come from.
SCALE_RULES: dict[str, str] = {
    "dense": "scales are fitted to the dense weights, once",
    "kept": "scales are fitted to the weights that a stage is given: to what is kept, where it was pruned before "
    "(where it was quantized before, to the dense weights of the kept inputs)",
}


def find_orders(names: object) -> list[Order]:
    """Orders by their names, each once; None for all.

    Raises
    ------
    InputError
        If there is none of a name.
    """
    if names is None:
        return list(ORDERS.values())
    wanted = members(names, "orders")
    if not wanted:
        raise InputError(f"orders is {shown(names)}; name at least one of {', '.join(ORDERS)}.")
    return [ORDERS[name] for name in dict.fromkeys(match_name(name, list(ORDERS), "order") for name in wanted)]
