"""The vocabularies: what the model says, and in which order the ids and the telemetry come."""

RISKS = ("none", "low", "med", "high")
REASONS = ("human", "obstacle", "tight_space", "unknown")
ACTIONS = ("continue", "slow", "stop", "reverse", "turn_left", "turn_right")

HEADS: dict[str, tuple[str, ...]] = {"risk": RISKS, "reason": REASONS, "action": ACTIONS}
"""Head name -> class names, in id order. The labels of head `h` are stored under the key `h + "_id"`."""

HIGH = RISKS.index("high")

TELEMETRY = ("ax", "ay", "az", "gx", "gy", "gz", "v", "w")
"""Order of the 8 numbers."""

UNITS = ("m/s²", "m/s²", "m/s²", "rad/s", "rad/s", "rad/s", "m/s", "rad/s")
"""Units of the 8 numbers."""
SPLITS = ("val", "train", "calibration")
