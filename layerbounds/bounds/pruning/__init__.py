"""Bounds for sparsity patterns."""
