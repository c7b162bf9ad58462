"""What quantization changes at the output of a layer."""
