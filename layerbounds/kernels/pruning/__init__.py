"""Compiled loops of pruning searches and methods."""
