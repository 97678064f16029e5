"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared import config_keys

ConfigPath = Annotated[Path, typer.Option("--config", help="The YAML config.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one config key; repeatable.",
        autocompletion=config_keys,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, help="CPU threads; default: one per core.", show_default=False),
]
CkptPath = Annotated[Path, typer.Option("--ckpt", help="A checkpoint, such as best.pt.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only warnings, errors and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also print details, each line with its time.")]
Baselines = Annotated[
    bool,
    typer.Option(
        "--baselines/--no-baselines",
        help="Compare with simple models fitted on train, and with training.llm_control.",
    ),
]
