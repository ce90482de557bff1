"""Quantization against pruning, and any contenders against each other, decided by certified intervals."""

from layerbounds.contests.levels import Comparison, Level
from layerbounds.contests.run import contest_layers, versus, versus_layers
from layerbounds.contests.standings import Entrant, Rank, Standings
from layerbounds.contests.verdict import Verdict

__all__ = [
    "Comparison",
    "Entrant",
    "Level",
    "Rank",
    "Standings",
    "Verdict",
    "contest_layers",
    "versus",
    "versus_layers",
]
