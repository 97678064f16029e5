"""The alarm: its threshold on P(high), calibration, intervals, and the confirmation over windows.

Imports the config and the ground. `hazards.choose_threshold` finds the threshold, which keeps what `promise` says of
new data; `threshold.choose_alarm` adds its price; `confirmation.Confirmation` raises it, `events` replays recordings
through it.
`unlike.Unlike` knows windows that are not of the training's kind.
"""
