"""What trainers and indexers get: immutable copies of one batch, and the changes since a batch."""
