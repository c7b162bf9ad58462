"""Build engines in a child process, and cache them."""
