"""Scripts that write the committed probe graphs."""
