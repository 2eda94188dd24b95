"""The decisions of distilld as pure functions over values: gates, records, samples, ids. No file, clock or database."""
