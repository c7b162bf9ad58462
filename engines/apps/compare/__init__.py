"""`ptqd-run compare`, and the check of engines against their statistics."""
