"""Read untrusted files safely, within fixed size limits."""
