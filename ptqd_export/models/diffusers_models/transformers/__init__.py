"""Transformers of diffusers: one adapter, and a table of what differs between the families."""
