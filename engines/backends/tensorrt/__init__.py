"""Run graphs on TensorRT and TensorRT-RTX."""
