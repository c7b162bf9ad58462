"""Learned rounding of weights, per layer or per block."""
