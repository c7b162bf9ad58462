"""Runs the networks while statistics are measured."""
