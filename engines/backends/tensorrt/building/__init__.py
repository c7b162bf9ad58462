"""Building engines in a child process, and keeping them."""
