"""Makers of committed graphs."""
