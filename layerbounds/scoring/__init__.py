"""Quantized checkpoints beside certified intervals: how far from the best on their own grid, and at any scale."""
