"""Changes to graphs, one a file."""
