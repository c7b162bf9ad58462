"""Prompts at build time."""
