"""Results for people and for files: tables and JSON."""

# Results of all kinds can draw themselves once this is imported.
from layerbounds.report import pictures

__all__ = ["pictures"]
