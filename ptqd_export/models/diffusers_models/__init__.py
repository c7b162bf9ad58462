"""Model families of diffusers."""
