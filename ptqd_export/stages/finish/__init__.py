"""From finished stages to a bundle in its place."""
