"""Runs the stages of a build that differ from size to size of the images."""
