"""Networks that are read from ONNX graphs: the graph becomes a torch module like any other."""
