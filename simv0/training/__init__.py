"""From feature files or frames to a finished run: `fit.fit` is the way in, `epoch` one epoch of it.

`work` holds all that the epochs work with; `origin` starts a new robot from an old one's checkpoint; `recipe` holds
optimizer, learning rate, class weights and what is hidden; `resume`, `stopping` and `rundir` keep a run safe;
`trackers` hands its metrics on. Nothing that a robot imports depends on this room.
"""
