"""Control networks: the residuals that a U-Net takes from a ControlNet or a T2I adapter, and the network that computes them."""
