"""The command line: the only part that prints for users (SPEC 5; docs/cli.md)."""
