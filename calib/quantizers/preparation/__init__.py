"""Rewrites a network so that it is easier to quantize and computes the same function."""
