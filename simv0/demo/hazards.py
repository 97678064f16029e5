"""Things, the rover among them, and the labels: how soon it hits what, and what a careful driver does about it.

World axes: x along the yard, y to the left, metres and seconds; a rover's own frame: metres ahead, metres to the left.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from simv0.labels import RISKS

HALF_VIEW = np.pi / 4
"""Half of the horizontal field of view: the focal length is half of the picture's width."""
ROVER_RADIUS = 0.25
"""The camera sits in the middle of a round rover."""
CREEP = 0.5
"""A standing rover is judged as if it set off at this speed, m/s."""
RISK_TIMES = (4.0, 2.2, 1.2)
"""A contact sooner than this, in s, is low, med, high."""
MARGIN = 0.5
"""Passing a post this close makes a tight space, one risk below touching anything else as soon, m."""
TOO_CLOSE = 0.6
"""A rover that stands with less room than this before an obstacle has to back off, m."""
STANDSTILL = 0.2
"""Slower than this counts as standing, m/s."""

REASON_OF = {"person": "human", "box": "obstacle", "post": "tight_space"}
"""Posts stand in pairs with hardly more room between them than the rover needs."""

_TIMES = np.arange(0.0, RISK_TIMES[0] + 0.05, 0.05)
_REACH = 7.0


@dataclass(frozen=True)
class Thing:
    """A person, box or post: a round footprint at (x, y), and how it walks."""

    kind: str
    x: float
    y: float
    radius: float
    height: float
    vy: float = 0.0
    """Speed across the yard now, m/s; 0 while a walker waits."""
    pace: float = 0.0
    """Speed across the yard when nothing is in the way; 0 for what never moves."""


@dataclass(frozen=True)
class Pose:
    """The truth at one frame: pose (m, rad), speed (m/s), yaw rate (rad/s), acceleration (m/s^2), the things then."""

    x: float
    y: float
    heading: float
    v: float
    w: float
    acceleration: float
    things: tuple[Thing, ...]

    def position_of(self, thing: Thing) -> tuple[float, float]:
        """(metres ahead, metres to the left) of the camera."""
        dx, dy = thing.x - self.x, thing.y - self.y
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return float(cos * dx + sin * dy), float(-sin * dx + cos * dy)

    @cached_property
    def path(self) -> Float[np.ndarray, "T 2"]:
        """Where it comes to if it keeps its speed (at least `CREEP`) and yaw rate, in its own frame of now."""
        return arc(max(self.v, CREEP), self.w, _TIMES)


@dataclass(frozen=True)
class Verdict:
    """The three labels, by name."""

    risk: str
    reason: str
    action: str


def arc(v: float, w: float, t: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 2"]:
    """Where a rover that keeps its speed and yaw rate is after t seconds: a circle, in the rover's frame of now."""
    half_turn = w * t / 2
    chord = v * t * np.sinc(half_turn / np.pi)
    return np.stack([chord * np.cos(half_turn), chord * np.sin(half_turn)], axis=-1)


def contact_time(state: Pose, thing: Thing, margin: float = 0.0) -> float:
    """Seconds until the rover on its present arc and a thing on its present course come within `margin`; inf if not.

    What the camera does not see, or what is too far to matter, does not count.
    """
    ahead, left = state.position_of(thing)
    if abs(left) > ahead * np.tan(HALF_VIEW) or ahead > _REACH:
        return float("inf")
    velocity = thing.vy * np.array([np.sin(state.heading), np.cos(state.heading)])
    apart = np.array([ahead, left]) + _TIMES[:, None] * velocity - state.path
    return _first(np.hypot(apart[:, 0], apart[:, 1]) < ROVER_RADIUS + thing.radius + margin)


def _first(hits: Bool[np.ndarray, " T"]) -> float:
    return float(_TIMES[hits.argmax()]) if hits.any() else float("inf")


def judge(state: Pose) -> Verdict:
    """The labels of one moment: how soon it hits what, and what a careful driver would do."""
    level, time, cause, ahead, left = 0, float("inf"), None, 0.0, 0.0
    for thing in state.things:
        near = contact_time(state, thing, MARGIN if thing.kind == "post" else 0.0)
        severity = _severity(near) - (thing.kind == "post")
        if (severity, -near) > (level, -time) and severity > 0:
            level, time, cause = severity, near, thing.kind
            ahead, left = state.position_of(thing)
            ahead -= thing.radius
    if cause is None:
        return Verdict("none", "unknown", "continue")
    reason = REASON_OF[cause]
    action = _careful_action(RISKS[level], reason, state.v, ahead - ROVER_RADIUS, left)
    return Verdict(RISKS[level], reason, action)


def _severity(time: float) -> int:
    return sum(time < limit for limit in RISK_TIMES)


def _careful_action(risk: str, reason: str, v: float, room: float, left: float) -> str:
    """Args: room ahead in m; `left` > 0 where the thing is on the left."""
    if reason != "human" and v < STANDSTILL and room < TOO_CLOSE:
        return "reverse"
    if risk == "high":
        return "stop"
    if reason == "obstacle" and risk == "med":
        return "turn_right" if left > 0 else "turn_left"
    return "slow"
