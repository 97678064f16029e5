"""The names of a recording's pictures: the order they imply, and the times they may contain."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from simv0.errors import DataError

NUMBER = re.compile(r"((?:(?<![^\W_])-)?[0-9]+(?:(?:[.,][0-9]+)+(?:[eE][+-]?[0-9]+)?|[eE][+-][0-9]+)?)")
"""A number in a name; after a letter or a digit the minus only parts (cam-0.5, 2017-04-16)."""


def in_time_order(paths: list[Path]) -> tuple[list[Path], list[float] | None]:
    """Pictures in the order that their names imply, with their times if the names are seconds with decimals; otherwise
    in natural order (frame2 before frame10), without times.

    Raises:
        DataError: two names of one time.
    """
    times = _times(paths)
    if times is None:
        return sorted(paths, key=_by_number), None
    ordered = sorted(zip(times, paths, strict=True))
    for (t, before), (same, after) in pairwise(ordered):
        if t == same:
            raise DataError(f"{after}: has the same time as {before.name}; keep one of them")
    return [path for _, path in ordered], [t for t, _ in ordered]


def _times(paths: list[Path]) -> list[float] | None:
    """Seconds, where the names are alike but for one number and some have decimals."""
    parts = [NUMBER.split(path.stem) for path in paths]  # text, number, text, ..., text
    if not parts or len({tuple(part[::2]) for part in parts}) > 1:
        return None
    numbers = list(zip(*(part[1::2] for part in parts), strict=True))
    varying = [column for column in numbers if len(set(column)) > 1] or [c for c in numbers if _are_times(c)]
    if len(varying) != 1 or not _are_times(varying[0]):
        return None
    try:
        return [float(number.replace(",", ".")) for number in varying[0]]
    except ValueError:  # 2017.04.16
        return None


def _are_times(numbers: tuple[str, ...]) -> bool:
    """Whether these are times as Python or a fixed format writes them; not 1.9 and 1.10, nor 1 and 2."""
    fractions = [re.split("[eE]", re.split("[.,]", number)[-1])[0] for number in numbers if set(number) & set(".,")]
    padded = len(set(map(len, fractions))) > 1 and any(len(f) > 1 and f.endswith("0") for f in fractions)
    return not padded and any(set(number) & set(".,eE") for number in numbers)


def _by_number(path: Path) -> list[Any]:
    """frame2 before frame10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]
