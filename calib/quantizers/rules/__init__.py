"""Decides which layers are quantized, and how."""
