"""Allocations as files of other tools, written and read; a tool is a file here and a line in the registry."""

from layerbounds.allocation.formats.registry import FORMATS, choices_of, export, find_format

__all__ = ["FORMATS", "choices_of", "export", "find_format"]
