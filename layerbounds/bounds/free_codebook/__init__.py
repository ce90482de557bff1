"""Bounds of free codebooks."""
