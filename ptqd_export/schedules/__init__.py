"""`ptqd-export schedule`: fits another schedule for a bundle and adds it."""
