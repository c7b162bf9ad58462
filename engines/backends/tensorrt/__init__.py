"""Graphs on TensorRT and TensorRT-RTX."""
