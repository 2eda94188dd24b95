"""What is handed to those who train and index: frozen copies of one batch, and what changed since another."""
