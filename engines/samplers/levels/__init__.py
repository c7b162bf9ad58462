"""What a model was trained with: its noise levels, timesteps and predictions."""
