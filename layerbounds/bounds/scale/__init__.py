"""Bounds for quantization where the scales are chosen with the codes."""
