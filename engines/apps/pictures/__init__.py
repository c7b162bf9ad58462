"""From states to pictures."""
