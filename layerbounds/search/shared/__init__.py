"""Branch and bound of masks that several rows share."""
