"""Methods beside certified intervals."""
