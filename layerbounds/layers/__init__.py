"""Layers: weights, Gram matrices, and the files that hold them."""
