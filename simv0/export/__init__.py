"""What a run hands on: `folder.export` writes a folder for a robot or the Hub, with the card of `card.model_card`;
`sim_v0_infer.py` is copied into each run's `export/` as it is.

No module of simv0 imports this room; how an exported folder is read is in `simv0.model.exported`.
"""
