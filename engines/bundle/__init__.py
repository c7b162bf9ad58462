"""A bundle on disk: its manifest, and files that are verified when they are used."""
