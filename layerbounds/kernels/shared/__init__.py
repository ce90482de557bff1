"""Compiled loops for masks that several rows share."""
