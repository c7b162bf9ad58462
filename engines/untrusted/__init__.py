"""Readers of files that anyone may have written, and the bounds of what such a file may ask for."""
