"""Use the GPU: memory, streams, and the kernels of a sampler's step."""
