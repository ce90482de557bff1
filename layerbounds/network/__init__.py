"""Runs over whole networks: every layer at several compressions, durable and side by side."""
