"""`ptqd-run bench`."""
