"""Telemetry beside a recording: CSV or JSONL of seconds and 8 numbers, and the ways in which such tables go wrong."""

import csv
import logging
import math
import re
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from simv0.data.jsonl import read_jsonl
from simv0.errors import DataError
from simv0.labels import TELEMETRY

log = logging.getLogger("simv0")

SLOWEST = 2.0
"""Median seconds between readings from which the times must be in another unit."""
BESIDE = 20
"""Multiple of the frames' duration from which telemetry whose readings are whole numbers apart must be in another unit.
"""
ABSOLUTE = 1e8
"""Seconds from which a time counts from 1970, so that two clocks can be compared."""

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""What people mean by a number; Python's `float` also accepts 1_000, inf and digits of other scripts."""

Reading = tuple[float, list[float]]


def read_telemetry(path: Path) -> list[Reading]:
    """Rows of (t, 8 numbers) in order of time, from CSV (commas, semicolons or tabs) or JSONL.

    Raises:
        DataError: missing or doubled columns, fields too many or too few, what is no number, times out of order or in
            another unit than seconds.
    """
    rows = enumerate(read_jsonl(path), 1) if path.suffix == ".jsonl" else _read_csv(path)
    lines, readings = [], []
    for line, row in rows:
        where = f"{path}:{line}"
        values = row["telemetry"] if "telemetry" in row else [row.get(name) for name in TELEMETRY]
        lines.append(line)
        readings.append((seconds_in(row, where), numbers_in(values, where)))
    if not readings:
        raise DataError(f"{path}: has no readings")
    _check_times(path, lines, [t for t, _ in readings])
    return readings


def _check_times(path: Path, lines: list[int], times: list[float]) -> None:
    gaps = [after - before for before, after in pairwise(times)]
    if not gaps:
        return
    for i, gap in enumerate(gaps):
        if gap < 0:
            raise DataError(
                f"{path}:{lines[i + 1]}: t: {times[i + 1]:.15g} comes before {times[i]:.15g}; sort the rows by t"
            )
    if times[0] == times[-1]:
        raise DataError(f"{path}: t: all {len(times)} readings have the time {times[0]:.15g} s; give each its own time")
    _refuse_unit(path, statistics.median(gaps), SLOWEST)
    if same := [i for i, gap in enumerate(gaps) if gap == 0]:
        log.warning(
            f"{path}: {len(same)} of {len(times)} readings have the same time as the one before (first: line "
            f"{lines[same[0] + 1]}); a frame uses the first of them"
        )


def check_unit(readings: list[Reading], start: float, seconds: float | None, path: Path) -> None:
    """Refuse telemetry that lasts far longer than the frames beside it: in ms, 200 readings a second are 5 apart.

    Args:
        readings: as `read_telemetry` gives them.
        start: time of the first frame; where it is absolute and within the readings, they are a longer log.
        seconds: from the first frame to the last, where it is known.
        path: of the telemetry, for the message.

    Raises:
        DataError: with how far readings are apart.
    """
    times = [t for t, _ in readings]
    if max(times[0], ABSOLUTE) <= start <= times[-1]:
        return
    if len(times) > 1 and seconds and times[-1] - times[0] > BESIDE * max(seconds, 1.0):
        _refuse_unit(path, statistics.median(after - before for before, after in pairwise(times)), 1.0)


def _refuse_unit(path: Path, usual: float, most: float) -> None:
    if usual >= most:
        raise DataError(
            f"{path}: t: readings are {usual:g} apart (median); expected seconds: divide ms by 1e3, us by 1e6, ns by "
            "1e9"
        )


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and cells of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            if "\0" in head:
                raise DataError(f"{path}: is not UTF-8 text (it looks like UTF-16); save it as UTF-8")
            file.seek(0)
            delimiter = max(",;\t", key=head.count)  # whichever parts the names of the columns
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            names = [name.strip() for name in next(reader, [])]
            if missing := [name for name in ("t", *TELEMETRY) if name not in names]:
                raise DataError(
                    f"{path}: the columns {', '.join(missing)} are missing; expected t,{','.join(TELEMETRY)}"
                )
            if doubled := [name for name in ("t", *TELEMETRY) if names.count(name) > 1]:
                raise DataError(f"{path}: the column {doubled[0]} appears {names.count(doubled[0])} times; keep one")
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(names):
                    surplus = len(cells) > len(names) and delimiter == ","
                    hint = "; write decimal points, not commas" if surplus else ""
                    raise DataError(
                        f"{path}:{reader.line_num}: expected {len(names)} fields, as in the header, found "
                        f"{len(cells)}{hint}"
                    )
                yield reader.line_num, dict(zip(names, cells, strict=True))
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def seconds_in(row: dict[str, Any], where: str) -> float:
    """`t` of a row.

    Raises:
        DataError: no finite number.
    """
    value = _number(row.get("t"))
    if value is None or not math.isfinite(value):
        raise DataError(f"{where}: t: expected seconds, found {row.get('t')!r:.40}{_hint(row.get('t'))}")
    return value


def numbers_in(values: Any, where: str) -> list[float]:
    """8 floats; values that were not recorded (null, NaN, an empty cell) are NaN, which the stream reports.

    Raises:
        DataError: not 8 of them, or one that is neither a finite number nor empty.
    """
    if not isinstance(values, list) or len(values) != len(TELEMETRY):
        raise DataError(f"{where}: telemetry: expected 8 numbers ({', '.join(TELEMETRY)}), found {values!r:.60}")
    numbers = [_number(value) for value in values]
    for name, value, number in zip(TELEMETRY, values, numbers, strict=True):
        if number is None or math.isinf(number):
            raise DataError(f"{where}: {name}: expected a number, found {value!r:.40}{_hint(value)}")
    return [math.nan if number is None else number for number in numbers]


def _number(value: Any) -> float | None:
    """A number of JSON or of a cell, NaN for what was not recorded, None for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in ("", "nan", "null"):
            return math.nan
        if not NUMBER.fullmatch(value):
            return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _hint(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]*,[0-9]+", value.strip()):
        return f"; write {value.strip().replace(',', '.')}"
    return ""
