"""Judge a scored row with its evidence, or two rows of a task: one module per dataset."""
