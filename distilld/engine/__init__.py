"""One pass: index what changed, judge the rows that it concerns, commit in batches."""
