"""`ptqd-run serve`."""
