"""Pruning before quantizing, quantizing before pruning, and both at once."""
