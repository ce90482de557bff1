"""From a PyTorch model and calibration batches to layers: hooks, unfolding, streaming Gram matrices."""
