"""Right and wrong certificates."""
