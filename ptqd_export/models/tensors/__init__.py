"""Find the files that hold a model's tensors, and read them without running code."""
