"""A chain from noise to sample: its schedule, steps and noise."""
