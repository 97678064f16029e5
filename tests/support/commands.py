"""The command line, as a test runs it."""

import io
from typing import Any

from typer.testing import CliRunner

from cli.main import app

runner = CliRunner()


def run(*args: object) -> Any:
    return runner.invoke(app, [str(arg) for arg in args], catch_exceptions=False)


class Terminal(io.StringIO):
    """What stderr is when somebody watches; it keeps what it was given."""

    def isatty(self) -> bool:
        return True
