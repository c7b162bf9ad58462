"""The commands of `ptqd-run`, one folder per command."""
