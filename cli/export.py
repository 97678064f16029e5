"""`simv0 export`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared import user_errors


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, whose best.pt is taken, or a checkpoint.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to make.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an exported folder.")] = False,
) -> None:
    """Write a folder for a robot or the Hugging Face Hub: weights, config, model card."""
    with user_errors():
        from simv0.disk.files import best_of
        from simv0.disk.folders import check_target
        from simv0.model.exported import FILES

        best_of(run)
        check_target(to.absolute(), FILES, overwrite, "--to")
        from simv0.export.folder import export as write

        typer.echo(f"written to {write(run, to, overwrite=overwrite)}")
