"""Matrices below a Gram matrix that are easy to minimise over: diagonals, blocks, clusters."""
