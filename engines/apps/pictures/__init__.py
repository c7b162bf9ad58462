"""Conversion of states to pictures."""
