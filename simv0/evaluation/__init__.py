"""How good a checkpoint is: metrics, events, predictions of many windows, the report's page (`report.html.j2`).

Imports training, baselines and `simv0.predict`; nothing imports it but `cli`. `run.evaluate_checkpoint` is the way in.
"""
