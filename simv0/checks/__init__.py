"""`simv0 check` and `simv0 inspect`: every problem before the expensive part, and what a file holds."""
