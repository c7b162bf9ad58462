"""Reads layers and weights from a graph."""
