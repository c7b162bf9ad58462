"""What the machine gives: files, locks, room on disks, memory, signals, progress."""
