"""One chain from noise to sample: its schedule, its step, its noise."""
