"""`ptqd-run evaluate`."""
