"""What is measured of the quantization noise at a step, and the correction that follows."""
