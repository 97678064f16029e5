"""Errors recorded instead of raised, so that the next check runs too."""

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from simv0.data.user_class import of_user
from simv0.errors import DataError, SimError

log = logging.getLogger("simv0")


class ErrorCollector(AbstractContextManager[None]):
    """For `with` blocks, in sequence or nested: records a SimError, every line once; also an exception of the user's
    class, after logging its traceback.

    Attributes:
        problems: what was wrong, in order.
    """

    def __init__(self) -> None:
        self.problems: list[SimError] = []

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception) and not isinstance(error, SimError) and of_user(error):
            error = fault_of(error)
        if not isinstance(error, SimError):
            return False
        told = {_kind(line) for problem in self.problems for line in str(problem).splitlines()}
        if new := [line for line in str(error).splitlines() if _kind(line) not in told]:
            self.problems.append(type(error)("\n".join(new)))
        return True


def refuse(problems: list[SimError]) -> None:
    """Raise the recorded errors, if any.

    Raises:
        SimError: the one problem as it is; several as one error of several lines, with the highest exit code.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kind = max((type(problem) for problem in problems), key=lambda kind: kind.exit_code)
        raise kind("\n".join(map(str, problems)))


def _kind(line: str) -> tuple[str, str]:
    """What a line of `Mistakes` says of which split, whatever the window and however often."""
    place, _, said = line.partition(": ")
    return re.sub(r"(\[\d+\]|:\d+)$", "", place), re.sub(r" \(and \d+ more like it\)$", "", said)


@contextmanager
def faults_told() -> Iterator[None]:
    """For a `with` block that calls the user's class: an exception becomes a DataError, its traceback is logged."""
    try:
        yield
    except SimError:
        raise
    except Exception as error:
        raise fault_of(error) from error


def fault_of(error: Exception) -> DataError:
    """An exception of the user's class as one line; its traceback is logged."""
    log.error("".join(traceback.format_exception(error)).rstrip())
    places = [note.removeprefix("in ") for note in getattr(error, "__notes__", []) if note.startswith("in ")]
    files = [place for place in traceback.extract_tb(error.__traceback__) if Path(place.filename).is_file()]
    at = f" ({Path(files[-1].filename).name}:{files[-1].lineno})" if files else ""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    return DataError(f"{places[0] if places else 'dataset'}: {said}{at}")
