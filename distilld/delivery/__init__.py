"""What is handed to those who train and index: retained copies of one batch, and what changed since another."""
