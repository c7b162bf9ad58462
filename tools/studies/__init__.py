"""Scripts that make the measurements quoted in the docs."""
