"""Errors the user can fix. Everything else is a bug and keeps its traceback."""

from contextlib import AbstractContextManager, nullcontext

RAISED: AbstractContextManager[None] = nullcontext()
"""For functions that make several checks, each in a `with` block: here the first error is raised; the collector of
`check` records it and lets the next check run.
"""


class SimError(Exception):
    """One line: what was wrong, where, what to do. The command line prints it and exits with `exit_code`."""

    exit_code = 1


def unwrap(error: SimError) -> SimError:
    """The error as it was raised, where a DataLoader's worker has wrapped its traceback around it."""
    lines = str(error).rstrip().splitlines()
    if not lines or not lines[0].startswith(f"Caught {type(error).__name__} in DataLoader worker"):
        return error
    return type(error)(lines[-1].split(": ", 1)[1])  # ends with "module.DataError: the message"


def of_lost_worker(error: Exception) -> "DataError | None":
    """What torch says when a process that reads data has been killed, as one line; None for any other error.

    It is raised wherever the main process happens to be.
    """
    said = str(error).splitlines()[0].rstrip(". ") if isinstance(error, RuntimeError) and str(error) else ""
    if said.startswith("Too many open files. Communication with the workers"):
        return DataError(
            "data.num_workers: too many open files; raise the limit (ulimit -n 65536), or set data.num_workers=0"
        )
    if not said.startswith("DataLoader worker (pid"):
        return None
    full = "Bus error" in said  # how a write to shared memory without room ends
    why = "is /dev/shm full? Enlarge it (docker run --shm-size=8g), or lower" if full else "out of memory? Lower"
    return DataError(f"a data-loading worker died ({said}): {why} data.num_workers, and restart (train: with --resume)")


class ConfigError(SimError):
    """A wrong command line or config; several mistakes come as several lines."""

    exit_code = 2


class DataError(SimError):
    """A dataset, sample, manifest or image that breaks the sample contract."""


class Mistakes:
    """Collects the errors of a loop: `with mistakes:` records a DataError and the loop continues.

    Each kind is reported once: errors are of one kind if they differ only in their place.
    """

    AT_MOST = 8

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.count: dict[str, int] = {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, DataError):
            return False
        said = str(error).partition(": ")[2]
        self.first.setdefault(said, str(error))
        self.count[said] = self.count.get(said, 0) + 1
        return True

    @property
    def enough(self) -> bool:
        """Whether enough mistakes have been found."""
        return len(self.first) == self.AT_MOST

    def tell(self) -> None:
        """Raise them, a line each, if there are any.

        Raises:
            DataError: all of them.
        """
        alike = {said: f" (and {count - 1} more like it)" if count > 1 else "" for said, count in self.count.items()}
        lines = [text + alike[said] for said, text in self.first.items()]
        if lines:
            raise DataError("\n".join(lines + ["(there may be more)"] * self.enough))


class CacheError(SimError):
    """A feature file that is damaged, incomplete, foreign, or belongs to something else."""


class ModelError(SimError):
    """A vision encoder or LLM that cannot be loaded or does not fit."""


class CheckpointError(SimError):
    """A checkpoint that is damaged, foreign, or belongs to another model."""


class TrainingError(SimError):
    """Training cannot continue: a non-finite loss, an output directory in use."""


def shown(text: str) -> str:
    """A text that somebody else wrote, fit for one line of a terminal."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else text[:197] + "..."
