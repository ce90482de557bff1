"""Compiled loops of joint problems."""
