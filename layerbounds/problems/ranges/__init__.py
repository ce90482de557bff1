"""Ranges: rules that fit the scale (and the zero point) of a grid, a file each."""
