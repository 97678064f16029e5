"""What a run hands on to a robot: `sim_v0_infer.py`, which training copies into a run's `export/` as it is.

Imports `predict`, `stream` and images; no module of simv0 imports it.
"""
