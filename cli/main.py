"""The command line: parse, call one function, print. Nothing here imports torch before a command needs it."""

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from cli.export import export
from cli.options import Baselines, CkptPath, ConfigPath, Overrides, Quiet, Threads, Verbose
from cli.shared import WholeCommand, cpu_threads, is_first, keep_freed_memory, say_version, user_errors
from cli.split import split
from simv0.labels import SPLITS

app = typer.Typer(
    help="Risk, reason and action from camera windows: a small trained model around a frozen encoder and a frozen LLM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=say_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(cls=WholeCommand)
def check(
    config: ConfigPath,
    set_: Overrides = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Load the networks and time a few batches, up to 20 s after loading.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Read every window and image, not only a sample.")] = False,
) -> None:
    """Report every problem before the expensive part, and what a run would cost here; exits with 1 or 2 on problems."""
    with user_errors():
        from simv0.config.load import load_config

        loaded = load_config(config, set_)
        from cli.tables import facts_table, watched
        from simv0.checks.collector import refuse
        from simv0.checks.run import check as run

        report = run(loaded, probe=probe, full=full, watch=watched)
        if not is_first():  # the others have measured with it, and would end it by failing first
            return
        facts_table(report.facts, f"what {config.name} would do on this machine")
        for warning in report.warnings:
            typer.echo(f"warning: {warning}", err=True)
        typer.echo(str(report))
        refuse(report.problems)


app.command(cls=WholeCommand)(split)


@app.command("cache-vis", cls=WholeCommand)
def cache_vis(
    config: ConfigPath,
    set_: Overrides = None,
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option(help="Replace existing feature files.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every frame again, even where size and times are unchanged.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the vision encoder once over all splits and write their feature files."""
    stopped = "stopped; finished shards are kept: run cache-vis without --overwrite to resume"
    with user_errors(stopped=stopped, quiet=quiet, verbose=verbose):
        from cache import cache_vis as run

        keep_freed_memory()
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C
        try:
            with cpu_threads(threads):
                reports = run(config, overwrite=overwrite, verify=verify, overrides=set_ or ())
        finally:
            signal.signal(signal.SIGTERM, previous)
        typer.echo(str(reports))


@app.command(cls=WholeCommand)
def train(
    config: ConfigPath,
    set_: Overrides = None,
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in output_dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train projector, telemetry MLP, task token and heads."""
    with user_errors(quiet=quiet, verbose=verbose):
        from simv0.api import fit

        with cpu_threads(threads):
            run = fit(config, resume=resume, overwrite=overwrite, overrides=set_ or ())
        if is_first():
            typer.echo(f"best checkpoint: {run.best_checkpoint}")


@app.command(cls=WholeCommand)
def evaluate(
    ckpt: CkptPath,
    config: Annotated[
        Path | None, typer.Option("--config", help="The config; by default the run's config_resolved.yaml.")
    ] = None,
    set_: Overrides = None,
    threads: Threads = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="A feature file, a folder of shards, or another split path for the dataset class."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="val, train or calibration.", autocompletion=lambda: list(SPLITS))
    ] = "val",
    baselines: Baselines = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Output folder; default: the run's evaluation/, or a folder in it for other data."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a checkpoint."""
    with user_errors(quiet=quiet, verbose=verbose):
        from simv0.api import evaluate as run

        with cpu_threads(threads):
            found = run(ckpt, data=data, split=split, baselines=baselines, out=out, config=config, overrides=set_ or ())
        if is_first():
            from cli.tables import print_evaluation

            print_evaluation(found)


@app.command(cls=WholeCommand)
def predict(
    ckpt: CkptPath,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="A manifest, a feature file, or a split path for the dataset class in --config; labels are optional.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Config with your dataset class, and with frozen networks that have moved."),
    ] = None,
    set_: Overrides = None,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of stdout.")] = None,
) -> None:
    """Print one line of JSON per window: risk, reason, action and their probabilities."""
    with user_errors(answers_on_stdout=out is None):
        from simv0.config.load import load_config

        loaded = load_config(config, set_) if config is not None else None
        from simv0.disk.files import check_checkpoint, check_out, write_atomically
        from simv0.training.refusals import check_data, class_of_run

        check_checkpoint(ckpt)
        if out is not None:
            check_out(out, {"--data": Path(data), "--ckpt": ckpt, "--config": config})
        check_data(data, loaded.data.dataset_class_path if loaded else None, class_of_run(ckpt))
        from simv0.evaluation.predict_windows import predict_windows

        lines = (json.dumps(row) for row in predict_windows(ckpt, data, loaded, overrides=set_ or ()))
        with cpu_threads(threads):
            if out is None:
                for line in lines:
                    typer.echo(line)
                return
            written = list(lines)
        write_atomically(out, "".join(line + "\n" for line in written).encode())
        typer.echo(f"{out}: {len(written)} predictions")


@app.command(cls=WholeCommand)
def inspect(
    path: Annotated[Path, typer.Argument(help="A feature file, a folder of shards, or a checkpoint.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read the whole file and check every digest.")] = False,
) -> None:
    """Show what a file holds and where it came from, and check its integrity; exits with 1 if it is damaged."""
    with user_errors(answers_on_stdout=True):
        from simv0.training.refusals import check_inspected

        check_inspected(path)
        from simv0.checks.files import inspect_path
        from simv0.config.yaml import dump_yaml

        facts = inspect_path(path, verify)
        typer.echo(dump_yaml(facts).rstrip())
        if facts.get("damaged"):
            raise typer.Exit(1)


app.command(cls=WholeCommand)(export)


@app.command(cls=WholeCommand)
def overlay(
    ckpt: CkptPath,
    frames: Annotated[
        str, typer.Option("--frames", help="Images, a video, a sequence.jsonl; rtsp://..., udp://..., /dev/video0.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The MP4 to write; optional with --live.")] = None,
    telemetry: Annotated[
        str | None,
        typer.Option("--telemetry", help="CSV or JSONL; of a live source: a growing JSONL, - or udp://HOST:PORT."),
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option("--spacing", help="Seconds between the frames of a window; default: from the checkpoint."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frame rate of a folder of images, in frames per second.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Show it on a web page, in real time.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Config that locates the frozen networks, if they have moved since training."),
    ] = None,
    set_: Overrides = None,
    threads: Threads = None,
) -> None:
    """Run a recording or a live source through the stream and draw the predictions on its frames: MP4, live page."""
    with user_errors():
        from cli.overlay import Wanted, run_overlay
        from cli.overlay_live import run_live

        wanted = Wanted(ckpt, frames, out, telemetry, spacing, fps, live)
        wanted.check()
        from simv0.config.load import load_config

        loaded = load_config(config, set_) if config is not None else None
        with cpu_threads(threads):
            (run_live if wanted.is_live else run_overlay)(wanted, loaded, set_ or ())


@app.command(cls=WholeCommand)
def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("runs/demo"),
) -> None:
    """Generate a small rover data set, then cache, train and evaluate on it: offline, about a minute."""
    with user_errors():
        from simv0.training.refusals import check_demo

        check_demo(out)
        from cli.demo import run_demo

        run_demo(out)
