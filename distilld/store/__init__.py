"""The state store: one SQLite file, written by one process, read by people (SPEC 4). The only package with SQL."""
