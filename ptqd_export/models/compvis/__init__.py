"""Checkpoints of CompVis' latent diffusion: safe to read, and mapped name by name onto diffusers' modules."""
