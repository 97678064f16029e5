"""JSONL files: one object a line, checked as they are read."""

import json
from pathlib import Path
from typing import Any

from simv0.errors import DataError


class _Twice(Exception):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: JSON would silently keep the last of two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for i, key in enumerate(keys) if key in keys[:i]))
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; blank lines are skipped only at the end.

    Raises:
        DataError: missing, not UTF-8, a line that is not a JSON object, a key twice in one object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: manifest not found") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if "\0" in lines[0]:
        raise DataError(f"{path}: is not UTF-8 text (it looks like UTF-16); save it as UTF-8")
    rows = []
    for number, line in enumerate([] if lines == [""] else lines, 1):
        try:
            row = json.loads(line, object_pairs_hook=_without_doubles)
        except _Twice as error:
            raise DataError(f"{path}:{number}: the key {error.args[0]!r} appears twice in one object") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows
