"""One writer and its life: lock, run once, dry run, daemon, watching, what it reports."""
