"""`python -m cli` is `simv0`."""

from cli.main import app

app()
