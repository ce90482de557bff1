"""Certified bounds and weights of all rows of a layer at once."""
