"""LoRA files (Hu et al. 2021): read without PyTorch, and applied to the weights of a built bundle."""
