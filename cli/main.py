"""The command line: parse, call one function, print."""

import typer

app = typer.Typer(no_args_is_help=True)
