"""The command line: the only part that speaks to people (SPEC 5; docs/cli.md)."""
