"""The network as a graph: tracing, passes, checks, sizes."""
