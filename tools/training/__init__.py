"""Training code that the small bundled models share."""
