"""What the user can mend. Everything else is a bug and keeps its traceback."""


class SimError(Exception):
    """One line: what was wrong, where, what to do. The command line prints it and exits with `exit_code`."""

    exit_code = 1


def unwrap(error: SimError) -> SimError:
    """The error as it was raised, where a DataLoader's worker has wrapped its traceback around it."""
    lines = str(error).rstrip().splitlines()
    if not lines or not lines[0].startswith(f"Caught {type(error).__name__} in DataLoader worker"):
        return error
    return type(error)(lines[-1].split(": ", 1)[1])  # ends with "module.DataError: the message"


class ConfigError(SimError):
    """A wrong command line or config; several mistakes come as several lines."""

    exit_code = 2


class DataError(SimError):
    """A dataset, sample, manifest or image that breaks the sample contract."""


class CacheError(SimError):
    """A feature file that is damaged, incomplete, foreign, or belongs to something else."""


class ModelError(SimError):
    """A vision encoder or LLM that cannot be loaded or does not fit."""


class CheckpointError(SimError):
    """A checkpoint that is damaged, foreign, or belongs to another model."""


class TrainingError(SimError):
    """Training cannot go on: a non-finite loss, an output directory in use."""
