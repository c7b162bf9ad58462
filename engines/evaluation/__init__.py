"""How good samples are: distances between feature distributions, and how far paired samples lie from full precision's."""
