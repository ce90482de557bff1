"""Certified minima over choices of whole output channels."""
