"""`simv0 check` and `simv0 inspect`: every problem before the expensive part, and what a file holds.

Imports every room below; `run.check` and `run.preflight` are the ways in, `files.inspect_path` that of `inspect`.
"""
