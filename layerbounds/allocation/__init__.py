"""Which compression for which layer: exact within a budget of bits, with what intervals of errors prove."""

from layerbounds.allocation.budgets import FrontPoint, front
from layerbounds.allocation.choosing import (
    Allocation,
    SearchEnd,
    UniformRival,
    allocate,
    bits_of_budget,
    regret,
    score,
)
from layerbounds.allocation.options import LayerOptions, Option

__all__ = [
    "Allocation",
    "FrontPoint",
    "LayerOptions",
    "Option",
    "SearchEnd",
    "UniformRival",
    "allocate",
    "bits_of_budget",
    "front",
    "regret",
    "score",
]
