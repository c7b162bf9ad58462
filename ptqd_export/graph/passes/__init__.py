"""Passes that change graphs, one per file."""
