"""Certified minima of rows whose masks limit one another."""
