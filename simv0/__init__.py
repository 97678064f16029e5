"""simv0: how risky a window of camera frames and telemetry is, why, and what to do.

Importing this package is cheap (no torch): the modules are imported where they are needed.
"""

__version__ = "0.1.0"
