"""Load checkpoints of CompVis' latent diffusion without running their code, and map their tensors by name onto diffusers' modules."""
