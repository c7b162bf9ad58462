"""The commands of `ptqd-run`, a folder each."""
