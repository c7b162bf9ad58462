"""One file for each sampler: its coefficients, from its paper."""
