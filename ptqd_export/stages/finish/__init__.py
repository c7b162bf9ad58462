"""Puts finished stages together as a bundle, and installs the bundle in its folder."""
