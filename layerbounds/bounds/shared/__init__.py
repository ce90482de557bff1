"""Certified minima of weights that share a mask."""
