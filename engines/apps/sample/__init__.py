"""`ptqd-run sample`."""
