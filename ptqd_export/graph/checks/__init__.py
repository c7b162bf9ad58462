"""Checks that a graph must pass before it leaves the build."""
