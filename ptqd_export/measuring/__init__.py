"""What runs the networks while they are measured."""
