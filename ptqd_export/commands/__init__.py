"""The other commands of `ptqd-export`."""
