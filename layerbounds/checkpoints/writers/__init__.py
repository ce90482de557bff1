"""Quantized weights as tensors that other tools read, a file for each format."""
