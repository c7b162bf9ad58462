"""The training side of a sampler: the model's noise schedule, noise levels, timesteps and prediction type."""
