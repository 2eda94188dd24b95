"""A sample lakehouse, and the show that runs on it."""
