"""Methods that prune and quantize at once."""
