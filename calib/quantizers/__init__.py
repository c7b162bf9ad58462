"""Scales, fake quantizers and the oracle."""
