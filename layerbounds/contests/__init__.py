"""Quantization against pruning at equal bits, decided by certified intervals."""

from layerbounds.contests.levels import Comparison, Level
from layerbounds.contests.run import versus, versus_layers
from layerbounds.contests.verdict import Verdict

__all__ = ["Comparison", "Level", "Verdict", "versus", "versus_layers"]
