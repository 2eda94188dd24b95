"""Many new partitions at once: read, judged and spooled by worker processes."""
