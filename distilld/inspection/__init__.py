"""Commands that only read: verify with its oracle, status, health, explain, diff, show and inspect."""
