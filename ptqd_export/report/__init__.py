"""The report of a bundle: one HTML page that needs no network, from what the bundle holds and what was measured with it."""
