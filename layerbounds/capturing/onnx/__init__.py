"""Capture of ONNX models: weights from the graph, inputs of layers by onnxruntime; without PyTorch."""
