"""`simv0 split`: a manifest divided into train, val and calibration so that no recording is in two of them.

`split_manifest` is the way in; `divide` chooses the recordings; `moved_rows` writes a row so that its paths still lead
where they did.
"""
