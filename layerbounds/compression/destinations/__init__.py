"""What a compressed model can be written as, so that other software loads it."""
