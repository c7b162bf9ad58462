"""The ONNX operators of denoisers in torch, one function each."""
