"""Certified minima of joint problems."""
