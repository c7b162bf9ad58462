"""A bundle's networks as denoisers: engines, conditions, prompts and the decoder."""
