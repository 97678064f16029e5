"""The alarm: its threshold on P(high), calibration, intervals, and the confirmation over windows.

Imports the config and the ground. `threshold.choose_alarm` finds the threshold, which keeps what `hazards` and
`promise` say of new data; `confirmation.Confirmation` raises it, `events` replays recordings through it.
`unlike.Unlike` knows windows that are not of the training's kind.
"""
