"""Compiled loops of tiled patterns."""
