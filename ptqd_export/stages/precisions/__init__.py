"""Stages that make the graph of a precision."""
