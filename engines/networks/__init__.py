"""Run a bundle's networks: denoisers, conditioning, prompts and the decoder."""
