"""The same function, easier to quantize."""
