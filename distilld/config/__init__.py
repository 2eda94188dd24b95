"""Settings: their keys, their sources, the commented config file."""
