"""Lower bounds: dual objects that certification re-derives."""
