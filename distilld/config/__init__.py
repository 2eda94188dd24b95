"""Settings: their keys, where they come from, the commented file."""
