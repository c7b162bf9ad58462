"""Quantizers whose values are floats of few bits in blocks, with a scale for each block."""
