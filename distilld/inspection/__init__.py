"""Commands that only look: verify with its oracle, status, health, explain, diff."""
