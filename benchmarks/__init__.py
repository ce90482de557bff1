"""Measurements behind the numbers in the documentation; each module is a command."""
