"""`ptqd-export extractor`: published networks as ONNX graphs for `ptqd-run evaluate`."""
