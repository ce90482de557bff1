"""Certification: the only code that sets bounds."""
