"""From a joined row, or from two rows of a task, to an outcome: one module per dataset."""
