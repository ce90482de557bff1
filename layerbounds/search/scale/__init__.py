"""Searches over scales and codes together."""
