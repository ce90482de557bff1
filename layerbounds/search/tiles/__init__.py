"""Branch and bound of masks of rows that limit one another."""
