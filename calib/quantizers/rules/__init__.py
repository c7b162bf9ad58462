"""Which layer is quantized, and how."""
