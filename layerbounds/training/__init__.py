"""Fine-tuning with quantization and pruning in the loop (docs/training.md); importable without PyTorch."""

from layerbounds.training.entry import finetune
from layerbounds.training.records import Finetuned, TrainedLayer
from layerbounds.training.schedule import Phase, Schedule

__all__ = ["Finetuned", "Phase", "Schedule", "TrainedLayer", "finetune"]
