"""The GPU: memory, streams and the kernel of a step."""
