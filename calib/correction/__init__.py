"""Moments of the quantization noise at each step, and the corrections fitted from them."""
