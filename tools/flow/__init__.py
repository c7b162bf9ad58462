"""A flow transformer that takes prompts, and the student that samples it in a few steps."""
