"""One pass: index what changed, judge what it touches, commit batch by batch."""
