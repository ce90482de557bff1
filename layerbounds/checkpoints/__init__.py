"""Quantized checkpoints of other tools: their weights, and the grids on which these lie."""
