"""A sample lakehouse, and the demo that runs on it."""
