"""Attention whose products have 8-bit inputs."""
