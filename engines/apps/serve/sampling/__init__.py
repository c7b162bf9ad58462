"""What replicas of a server sample, and how."""
