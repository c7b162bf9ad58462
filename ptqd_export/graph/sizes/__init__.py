"""The cost of a network: multiply-accumulates and bit operations."""
