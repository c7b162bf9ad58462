"""Measurements for the docs."""
