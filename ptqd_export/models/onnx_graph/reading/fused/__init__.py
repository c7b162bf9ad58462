"""Fused operators of ONNX Runtime, written as operators of the standard."""
