"""What every command shares: errors as lines on stderr, and the threads it may use."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import typer
from typer.core import TyperCommand

from simv0 import __version__
from simv0.disk.locks import check_platform
from simv0.errors import ConfigError, SimError, of_lost_worker


@contextmanager
def user_errors(
    answers_on_stdout: bool = False, stopped: str = "stopped", *, quiet: bool = False, verbose: bool = False
) -> Iterator[None]:
    """Print errors the user can fix as plain lines on stderr, with its exit code; all else keeps its traceback.

    The library's log goes to stdout, its warnings to stderr; all of it to stderr if stdout carries the output.

    `quiet` leaves warnings, errors and what the command itself prints; `verbose` adds the log's details and the time.
    """
    from simv0.runtime.speaking import heard_on

    try:
        with heard_on(sys.stderr if answers_on_stdout else sys.stdout, quiet=quiet, verbose=verbose):
            if quiet and verbose:
                raise ConfigError("--quiet and --verbose exclude each other")
            check_platform()
            with _without_progress() if quiet else nullcontext():
                yield
    except KeyboardInterrupt:
        typer.echo(stopped, err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        told = error if isinstance(error, SimError) else of_lost_worker(error)
        if not _first_to_fail():
            raise typer.Exit(told.exit_code if told else 1) from None
        if told is None:
            raise
        for line in str(told).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(told.exit_code) from None


@contextmanager
def _without_progress() -> Iterator[None]:
    """Neither our bars nor those of downloads."""
    from simv0.runtime.progress import no_progress

    asked = "HF_HUB_DISABLE_PROGRESS_BARS"
    before = os.environ.get(asked)
    os.environ[asked] = "1"  # the hub's package, which is not loaded yet, and transformers after it
    try:
        with no_progress():
            yield
    finally:
        os.environ.pop(asked)
        if before is not None:
            os.environ[asked] = before


def cpu_threads(threads: int | None) -> AbstractContextManager[None]:
    """`--threads` for one command."""
    if threads is None:
        return nullcontext()
    from simv0.runtime.threads import limited_to

    return limited_to(threads)


def is_first() -> bool:
    """Whether to print results: of torchrun's processes only the first one does."""
    return os.environ.get("RANK", "0") == "0"


def _first_to_fail() -> bool:
    """Whether to print an error: of torchrun's processes only the one that failed first does."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from simv0.runtime.distributed import first_to_fail

    return first_to_fail()


class WholeCommand(TyperCommand):
    """A command whose help sentence is shown in full in the list of commands."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The whole sentence: the list wraps it."""
        return " ".join((self.help or "").split())


def keep_freed_memory() -> None:
    """Let glibc keep what one batch frees for the next one; elsewhere nothing happens.

    By default large blocks go back to the kernel and are faulted in anew, page by page: with the activations of a tower
    of convolutions that can take longer than the encoder itself (benchmarks/results/cache_vis_epyc_2026-11-23.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: which is not cut back


def config_keys(incomplete: str) -> list[str]:
    """What a shell completes `--set` with."""
    from simv0.config.load import all_keys

    return [f"{key}=" for key in all_keys() if key.startswith(incomplete)]


def say_version(asked: bool) -> None:
    """Print the version and exit."""
    if asked:
        typer.echo(f"simv0 {__version__}")
        raise typer.Exit
