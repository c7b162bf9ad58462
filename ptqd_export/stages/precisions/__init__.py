"""Stages that make the graph of each precision."""
