"""Which backend works on which channels, when, and for how long."""
