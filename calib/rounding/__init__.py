"""Learned rounding, by layer or block."""
