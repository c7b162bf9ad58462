"""What a terminal shows: command lines, progress, tables."""
