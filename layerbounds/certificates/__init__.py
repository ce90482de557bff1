"""What lower ends are proven by, for certificates."""
