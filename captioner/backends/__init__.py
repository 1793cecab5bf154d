"""What computes the network for a search: PyTorch, or ONNX Runtime without PyTorch."""
