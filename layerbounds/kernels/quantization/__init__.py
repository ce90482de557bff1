"""Compiled loops of quantization searches and methods."""
