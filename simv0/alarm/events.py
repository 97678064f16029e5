"""Recordings replayed through the confirmed alarm, and the events in them: what a robot's alarm would have done.

An event is a run of "high" windows of one recording. Everything here is in the order of `Timeline.order`: recording by
recording, each in order of time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from simv0.alarm.confirmation import STALE, Confirmation

GAP = 2
"""A window that comes after more than so many of its recording's usual hops does not follow on the one before."""


@dataclass(frozen=True)
class Timeline:
    """The N windows of a split, recording by recording, each in order of time."""

    order: Int[np.ndarray, " N"]
    """The window of the split at each place: `array[order]` brings an array of the split into order."""
    names: list[str]
    """Of the R recordings."""
    recording: Int[np.ndarray, " N"]
    """Number of each window's recording, 0..R-1."""
    t: Float[np.ndarray, " N"]
    """Seconds of its last frame."""
    hop: Float[np.ndarray, " R"]
    """Usual seconds from one window to the next (median); of all recordings together where one has a single window."""

    @cached_property
    def same(self) -> Bool[np.ndarray, " N"]:
        """Whether a window is of the same recording as the one before."""
        same: np.ndarray = np.diff(self.recording, prepend=-1) == 0
        return same

    @cached_property
    def follows(self) -> Bool[np.ndarray, " N"]:
        """Whether a window follows on the one before: the same recording, and no gap between them."""
        since = np.diff(self.t, prepend=-math.inf)
        follows: np.ndarray = self.same & (since <= GAP * self.hop[self.recording])
        return follows

    @cached_property
    def seconds(self) -> Float[np.ndarray, " N"]:
        """How long each window is the newest: until the next one, or for a usual hop where none follows on it."""
        until = np.diff(self.t, append=math.inf)
        return np.where(np.append(self.follows[1:], False), until, self.hop[self.recording])


def timeline(group: Sequence[str] | None, t: Float[np.ndarray, " N"] | None) -> Timeline | str:
    """The windows of a split in order, or in one line why they have none and what to add."""
    missing = [name for name, values in (("group", group), ("t", t)) if values is None]
    if group is None or t is None:
        return (
            f"the windows have no {' and no '.join(missing)}: give each its recording as `group` and the seconds of "
            "its last frame as `t`"
        )
    names, recording = np.unique(np.asarray(group), return_inverse=True)
    order = np.lexsort((t, recording))
    recording, t = recording[order], t[order]
    same = np.diff(recording) == 0
    since = np.diff(t)
    if not same.any():
        return "no recording has two windows: an alarm that is confirmed over windows needs recordings"
    if (since[same] <= 0).any():
        at = np.flatnonzero(same & (since <= 0))[0]
        return (
            f"two windows of {str(names[recording[at]])!r} end at t = {t[at]:.3f} s: t must be that of the last frame"
        )
    usual = float(np.median(since[same]))
    hops = [since[same & (recording[1:] == i)] for i in range(len(names))]
    hop = np.array([np.median(some) if len(some) else usual for some in hops])
    return Timeline(order=order, names=[str(name) for name in names], recording=recording, t=t, hop=hop)


def replay(
    line: Timeline,
    p_high: Float[np.ndarray, " N"],
    confirm: Sequence[int],
    release: float,
    spacing: float | None = None,
    unlike: Bool[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " N"]:
    """Run each recording through `Confirmation`, as `Stream` does.

    Args:
        line: the windows' order.
        p_high: calibrated P(high) of each window, in that order.
        confirm: of `Confirmation`.
        release: of `Confirmation`.
        spacing: seconds between the frames of a window, where known: a stream takes scores for stale after 3 of them.
            Where windows come more seldom than that, after 3 of their usual hops.

        unlike: which windows are unlike the training data, where known; they take no alarm back.

    Returns:
        The level of each window: after it the alarm is raised at every threshold up to this one, `level >= threshold`.
    """
    levels = np.empty(len(p_high))
    unlike = np.zeros(len(p_high), bool) if unlike is None else unlike
    for number, hop in enumerate(line.hop):
        alarm = Confirmation(confirm, release, STALE * max(spacing or 0.0, float(hop)))
        for at in np.flatnonzero(line.recording == number):
            levels[at] = alarm.update(float(p_high[at]), float(line.t[at]), bool(unlike[at]))
    return levels


def runs(line: Timeline, among: Bool[np.ndarray, " N"], over_gaps: bool = False) -> Int[np.ndarray, "E 2"]:
    """The runs of windows that follow on each other and are all `among`: first place, and the place after the last.

    Of the "high" windows they are the events; of the raised ones, `over_gaps` of a recording, the alarms.
    """
    goes_on = (line.same if over_gaps else line.follows) & among & np.append(False, among[:-1])
    firsts = np.flatnonzero(among & ~goes_on)
    lasts = np.flatnonzero(among & ~np.append(goes_on[1:], False))
    return np.stack([firsts, lasts + 1], 1)


def best(levels: Float[np.ndarray, " N"], of: Int[np.ndarray, "E 2"]) -> Float[np.ndarray, " E"]:
    """The highest threshold at which each run sees the alarm raised: an event is found at every threshold up to it."""
    return np.array([levels[first:end].max() for first, end in of])
