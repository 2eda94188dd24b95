"""What a batch writes: exports, by a commit protocol with recovery, and receipts."""
