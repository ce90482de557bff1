"""Masks that leave kept weights as they are: binary quadratic problems."""
