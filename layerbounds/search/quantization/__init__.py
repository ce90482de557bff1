"""Branch and bound over level sets."""
