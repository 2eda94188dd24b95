"""The one writer of a lake: its lock, single runs, dry runs, the daemon, file events, its reports."""
