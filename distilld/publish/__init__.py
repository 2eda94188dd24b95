"""What the world sees of a batch: exports, the commit protocol with its recovery, receipts."""
