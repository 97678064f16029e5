"""Seconds between the frames of a window: what the training windows had, and whether a robot's are the same."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from simv0.arguments import is_number, require
from simv0.config.schema import DataConfig
from simv0.errors import ConfigError, DataError

log = logging.getLogger("simv0")

MISMATCH = 0.2
"""Share by which a spacing may differ from that of the training windows before it is reported."""
ROUNDING = 1e-6
"""Seconds since 1970 carry a rounding of 2e-7."""
UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
TODAY = 2e9
"""Seconds since 1970, within a factor of two, until 2096."""


def differs(spacing: float, trained: float) -> bool:
    """Whether it is far from the spacing of the training windows."""
    return abs(spacing - trained) > MISMATCH * trained


def choose_spacing(given: Any, trained: float | None) -> float:
    """Seconds between the frames of a window: `given`, else what the checkpoint was trained with.

    One that differs by more than a fifth from the training windows' is logged.

    Raises:
        ConfigError: no seconds > 0; neither is known.
    """
    if given is None:
        if trained is None:
            raise ConfigError(
                "spacing: the checkpoint does not say how far apart the frames of its training windows are; give it "
                "in seconds (and train with data.frame_spacing)"
            )
        return trained
    require(is_number(given) and 0 < given < math.inf, "spacing", "seconds > 0", given)
    if trained is not None and differs(given, trained):
        log.warning(
            f"spacing: {given:g} s, but the frames of the training windows are {trained:g} s apart: motion looks "
            f"{given / trained:.2g} times as fast as in training"
        )
    return float(given)


def split_spacing(data: DataConfig, said: Any, name: str) -> float | None:
    """Seconds between the frames of a split's windows: `data.frame_spacing`, else what its data say; None: unknown.

    Args:
        data: the config's section.
        said: by the dataset's `frame_spacing`, or the feature file.
        name: of the split, for messages.

    Raises:
        DataError: the dataset's is no number of seconds > 0.
        ConfigError: the config says another than the data.
    """
    if said is not None and not (is_number(said) and 0 < said < math.inf):
        raise DataError(f"{name}: frame_spacing: expected seconds > 0, found {said!r:.60}")
    wanted = data.frame_spacing
    if wanted is not None and said is not None and differs(wanted, said):
        raise ConfigError(f"data.frame_spacing: {wanted:g} s, but the frames of {name}'s windows are {said:g} s apart")
    return wanted if wanted is not None or said is None else float(said)


def warn_of_spacing(train: float | None, val: float | None, name: str = "val") -> None:
    """Warn where the frames of train windows and those of another split are spaced differently."""
    if train is not None and val is not None and differs(val, train):
        log.warning(f"{name}'s frames are {val:g} s apart, train's {train:g} s: {name} is not representative of train")


def pick_window(times: Sequence[float], F: int, spacing: float) -> list[int] | str:
    """The places of the F times, oldest first, that end with the newest one and lie `spacing` apart, each within half
    of it; or in one line why there are none.

    Args:
        times: seconds of the frames, in order; at least one.
        F: frames of a window.
        spacing: seconds.
    """
    picked = [len(times) - 1]
    while len(picked) < F:
        if picked[-1] == 0:
            return f"the window is not full yet: {len(picked)} of {F} frames"
        t = times[picked[-1]]
        at = min(range(picked[-1]), key=lambda i: (abs(t - spacing - times[i]), -i))
        if abs(t - times[at] - spacing) > spacing / 2 + ROUNDING:
            return (
                f"frames {t - times[at]:.3f} s apart, {times[-1] - t:.3f} s before the newest one; expected "
                f"{spacing:g} s, within half of it{_unit_of_gaps(times[-3:], spacing)}"
            )
        picked.append(at)
    return picked[::-1]


def _unit_of_gaps(newest: Sequence[float], spacing: float) -> str:
    """What `t` seems to count, where no two of the last three frames are near enough for seconds; frames may come 8
    times as often as `spacing`.
    """
    if len(newest) < 3:
        return ""
    return _unit(min(newest[1] - newest[0], newest[2] - newest[1]) / spacing, 1 / 8)


def unit_of_clock(t: float, now: float) -> str:
    """What a time that is ahead of a clock seems to count, or which clock it is of."""
    if now > 0 and (unit := _unit(t / now, 0.99)):
        return unit
    if 1 / 2 <= t / TODAY <= 2:
        return "; t looks like seconds since 1970, which need clock=time.time"
    return _unit(t / TODAY, 1 / 2)


def _unit(ratio: float, least: float) -> str:
    return next((f"; t looks like {name}" for name, unit in UNITS.items() if least <= ratio / unit <= 1 / least), "")
