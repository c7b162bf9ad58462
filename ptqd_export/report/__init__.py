"""The report of a bundle: one HTML page, which loads nothing, of the bundle's contents and what was measured with it."""
