"""`simv0 split`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared import user_errors


def split(
    manifest: Annotated[Path, typer.Argument(help="A manifest of labelled windows.", show_default=False)],
    by: Annotated[str, typer.Option("--by", help="The key that names a row's recording.")] = "group",
    val: Annotated[float, typer.Option("--val", help="Share of the windows for val.")] = 0.2,
    calibration: Annotated[
        float | None, typer.Option("--calibration", help="Share of the windows for a calibration split.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed gives another, equally good division.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write to; default: the manifest's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier division.")] = False,
) -> None:
    """Divide a manifest by recording into train, val and calibration, with every class in each where possible."""
    with user_errors():
        from cli.tables import split_table
        from simv0.data.division.split_manifest import split_manifest

        division = split_manifest(
            manifest, by=by, val=val, calibration=calibration, seed=seed, out=out, overwrite=overwrite
        )
        split_table(division)
        for problem in division.problems:
            typer.echo(f"warning: {problem}", err=True)
