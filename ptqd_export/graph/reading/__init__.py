"""What a graph says of its layers and weights."""
