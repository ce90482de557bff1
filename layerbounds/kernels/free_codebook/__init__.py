"""Compiled loops of free codebooks."""
