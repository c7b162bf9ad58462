"""The feature extractor that ships with the run time: its pictures, network and training."""
