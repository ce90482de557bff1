"""Compressing whole models, layer by layer."""
