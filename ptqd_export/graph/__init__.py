"""The network as an ONNX graph: tracing, passes, checks and sizes."""
