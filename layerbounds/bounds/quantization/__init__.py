"""Bounds for level sets."""
