"""Every part of the method, on two models."""
