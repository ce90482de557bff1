"""Branch and bound over sparsity masks."""
