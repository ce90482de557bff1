"""Formats of quantized checkpoints, a file each."""
