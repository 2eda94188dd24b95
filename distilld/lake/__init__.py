"""The input trees: walk them, open a partition, split it into lines."""
