"""Sparsity patterns: which inputs output channels may keep together.

A pattern comes down to three integer arrays, its `Structure`: inputs form *units* that are kept or dropped together,
units form *groups*, and each group has a capacity. Some patterns are each output channel's own, others are shared by
all rows of the weight matrix, or by some.
"""

from layerbounds.problems.patterns.base import Pattern, Shape
from layerbounds.problems.patterns.registry import PATTERNS, as_pattern, parse_pattern
from layerbounds.problems.patterns.structure import Structure

__all__ = ["PATTERNS", "Pattern", "Shape", "Structure", "as_pattern", "parse_pattern"]
