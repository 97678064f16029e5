"""The alarm: its threshold on P(high), calibration and intervals, and the confirmation over windows."""
