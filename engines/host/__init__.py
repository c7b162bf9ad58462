"""The machine's resources: files, locks, disk space, memory, signals."""
