"""Quantization against pruning at equal bits, decided by certified intervals."""

from layerbounds.verdicts.comparison import Comparison, Level
from layerbounds.verdicts.run import versus, versus_layers
from layerbounds.verdicts.verdict import Verdict

__all__ = ["Comparison", "Level", "Verdict", "versus", "versus_layers"]
