"""Search of free codebooks."""
