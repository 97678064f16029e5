"""How good a checkpoint is: metrics, baselines, predictions of many windows; the report's page (`report.html.j2`)."""
