"""The demo world: a rover drives past people, boxes and narrow gaps; what it sees, feels and should do goes to disk.

In order: a scene (`make_scene`) -> a drive through it (`drive`) -> telemetry (`measure`), labels (`judge`) and pictures
(`simv0.render`) -> manifests (`write_world`). World axes: x along the yard, y to the left, metres and seconds.

No head can be predicted from one input alone: time to collision needs distance (picture) and speed (telemetry), and
whether a walking person will be in the way needs several frames.
"""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from simv0.demo.hazards import CREEP, ROVER_RADIUS, STANDSTILL, Pose, Thing, arc, contact_time, judge
from simv0.demo.render import Look, make_look, render
from simv0.labels import ACTIONS, REASONS, RISKS

RATE = 3.0
"""Frames per second."""
SUBSTEPS = 3
"""The motion is worked out this many times a frame."""
WALK = 1.6
"""People who walk go to and fro this far from the middle, m."""

_NOISE = np.array([0.2, 0.2, 0.2, 0.02, 0.02, 0.02, 0.03, 0.02])


@dataclass(frozen=True)
class Scene:
    """A yard, its walls at y = +-half_width too far off to hit, and what stands or walks in it at the start."""

    half_width: float
    things: tuple[Thing, ...]
    look: Look


@dataclass(frozen=True)
class Driver:
    """Who drives while recording: from careful to reckless, so that how one drives does not give the labels away."""

    cruise: float
    brake_time: float
    look_ahead: float
    clearance: float
    patience: int


def make_scene(rng: np.random.Generator) -> Scene:
    """Eleven things, one every few metres: most in the way, some beside it."""
    things: list[Thing] = []
    x = float(rng.uniform(2.0, 4.0))
    for kind in rng.permutation(["box"] * 5 + ["gap"] * 2 + ["stander"] * 2 + ["walker"] * 2):
        side = float(rng.choice([-1, 1]))
        beside = side * float(rng.uniform(1.2, WALK))
        y = side * float(rng.uniform(0.1, 0.3)) if rng.uniform() < 0.92 else beside
        height = float(rng.uniform(1.6, 1.9))
        if kind == "box":
            things.append(Thing("box", x, y, radius=float(rng.uniform(0.4, 0.5)), height=0.45 * height))
        elif kind == "gap":
            half = ROVER_RADIUS + 0.2 + float(rng.uniform(0.12, 0.25))
            things += [Thing("post", x, 0.3 * y + off, radius=0.2, height=1.5) for off in (-half, half)]
        elif kind == "stander":
            things.append(Thing("person", x, y, 0.3, height))
        else:
            pace = float(rng.uniform(0.4, 0.6)) * float(rng.choice([-1, 1]))
            things.append(Thing("person", x, beside, 0.3, height, vy=pace, pace=pace))
        x += float(rng.uniform(2.6, 3.4))
    return Scene(float(rng.uniform(3.5, 5.0)), tuple(things), make_look(rng))


def drive(scene: Scene, rng: np.random.Generator, frames: int, reckless: float) -> list[Pose]:
    """Drive through the scene, one state a frame."""
    driver = Driver(
        cruise=float(rng.uniform(0.5, 0.7) + 0.3 * reckless),
        brake_time=float(rng.uniform(0.4, 0.8) if reckless > 0.4 else rng.uniform(1.6, 2.2)),
        look_ahead=float(rng.choice([0.3, 3.0])),
        clearance=float(rng.uniform(0.2, 0.4)),
        patience=int(rng.integers(2, 7)),
    )
    state = Pose(
        0.0, float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.1, 0.1)), driver.cruise, 0.0, 0.0, scene.things
    )
    states, standing, backing = [state], 0, 0
    for i in range(1, frames):
        if i % 8 == 0:  # nobody keeps one pace, nor looks ahead all the time
            cruise = float(np.clip(driver.cruise + rng.uniform(-0.25, 0.25), 0.5, 1.0))
            driver = replace(driver, cruise=cruise, look_ahead=float(rng.choice([0.3, 3.0])))
        standing = standing + 1 if abs(state.v) < STANDSTILL else 0
        blocked = _blocked(state)
        if standing > driver.patience and blocked:
            backing, standing = int(rng.integers(4, 7)), 0
            driver = replace(driver, look_ahead=3.0)
        backing = max(backing - 1, 0)
        for _ in range(SUBSTEPS):
            state = _step(state, driver, -0.35 if backing else driver.cruise, rng)
        states.append(state)
    return states


def _blocked(state: Pose) -> bool:
    """Something stands right ahead."""
    return min(contact_time(state, thing) for thing in state.things) < 2.0


def _step(state: Pose, driver: Driver, speed: float, rng: np.random.Generator) -> Pose:
    dt = 1 / RATE / SUBSTEPS
    if speed > 0:
        time = min(contact_time(state, thing) for thing in state.things)
        if time < driver.brake_time or time * max(state.v, CREEP) < 0.2 + state.v**2 / 5:
            speed = 0.0
    acceleration = float(np.clip((speed - state.v) / 0.3, -3.0, 1.2))
    v = state.v + acceleration * dt
    aim = float(np.clip(1.2 * (_target_y(state, driver) - state.y), -0.5, 0.5))
    off = aim - state.heading
    turn = (float(np.clip(3.0 * off, -0.9, 0.9)) if abs(off) > 0.05 else 0.0) + float(rng.normal(0, 0.03))
    w = state.w + 0.4 * (turn * (0.0 if speed < 0 else 1.0) - state.w)
    ahead, left = arc((state.v + v) / 2, w, np.array([dt]))[0]
    cos, sin = np.cos(state.heading), np.sin(state.heading)
    x, y = state.x + cos * ahead - sin * left, state.y + sin * ahead + cos * left
    things = tuple(_walk(thing, float(x), float(y), dt) for thing in state.things)
    return Pose(float(x), float(y), state.heading + w * dt, v, w, acceleration, things)


def _target_y(state: Pose, driver: Driver) -> float:
    """The line that the driver steers for: through a gap, round what stands in the way, else the middle."""
    coming = [thing for thing in state.things if thing.pace == 0 and -0.5 < thing.x - state.x < driver.look_ahead]
    coming = [thing for thing in coming if abs(thing.y - state.y) < thing.radius + ROVER_RADIUS + 0.3]
    if not coming:
        return 0.0
    nearest = min(coming, key=lambda thing: thing.x)
    if nearest.kind == "post":
        return float(np.mean([thing.y for thing in state.things if thing.x == nearest.x]))
    around = nearest.radius + ROVER_RADIUS + driver.clearance
    return nearest.y - around if nearest.y > 0 else nearest.y + around


def _walk(thing: Thing, rover_x: float, rover_y: float, dt: float) -> Thing:
    """People walk to and fro, and wait rather than walk into the rover."""
    if thing.pace == 0:
        return thing
    pace = -thing.pace if abs(thing.y) > WALK and thing.y * thing.pace > 0 else thing.pace
    y = thing.y + pace * dt
    if np.hypot(thing.x - rover_x, y - rover_y) < ROVER_RADIUS + thing.radius + 0.1:
        return replace(thing, vy=0.0, pace=pace)
    return replace(thing, y=y, vy=pace, pace=pace)


def measure(states: list[Pose], rng: np.random.Generator) -> Float[np.ndarray, "n 8"]:
    """What the rover's sensors say, in the order of `simv0.labels.TELEMETRY`, noise included."""
    truth = [(s.acceleration, s.v * s.w, 9.81, 0.0, 0.0, s.w, s.v, s.w) for s in states]
    telemetry: np.ndarray = np.array(truth) + rng.normal(size=(len(states), 8)) * _NOISE
    return telemetry


def write_world(
    folder: Path,
    *,
    train_windows: int,
    val_windows: int,
    seed: int,
    F: int = 8,
    size: tuple[int, int] = (96, 64),
) -> None:
    """Write `train.jsonl`, `val.jsonl` and `images/` for `ManifestDataset`; the same seed, the same bytes.

    Each recording (`group`) is one drive of its own scene and belongs to one split; windows start at every frame.

    Args:
        folder: created if need be.
        train_windows: number of windows in `train.jsonl`.
        val_windows: number of windows in `val.jsonl`.
        seed: of everything that is drawn.
        F: frames per window.
        size: width and height of the frames.
    """
    for part, (split, windows) in enumerate({"train": train_windows, "val": val_windows}.items()):
        rows: list[dict[str, object]] = []
        for number in itertools.count():
            if len(rows) == windows:
                break
            rng = np.random.default_rng([seed, part, number])
            reckless = number * 0.618 % 1  # spreads evenly over however few recordings
            rows += record(folder, f"{split}-{number:03d}", rng, reckless, windows - len(rows), F, size)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def record(
    folder: Path, group: str, rng: np.random.Generator, reckless: float, most: int, F: int, size: tuple[int, int]
) -> list[dict[str, object]]:
    """Drive and write one recording; returns its windows as manifest rows, at most `most`."""
    windows = min(most, max(1, int(rng.integers(48, 97)) - F + 1))
    scene = make_scene(rng)
    states = drive(scene, rng, F + windows - 1, reckless)
    telemetry = measure(states, rng)
    images = folder / "images" / group
    images.mkdir(parents=True, exist_ok=True)
    for i, state in enumerate(states):
        picture = render(state, scene.half_width, scene.look, size, rng)
        picture.save(images / f"{i:03d}.jpg", quality=90)
    rows = []
    for start in range(windows):
        last = start + F - 1
        verdict = judge(states[last])
        rows.append(
            {
                "sample_id": f"{group}-{last:03d}",
                "group": group,
                "t": round(last / RATE, 3),
                "frames": [f"images/{group}/{i:03d}.jpg" for i in range(start, start + F)],
                "telemetry": [round(float(value), 5) for value in telemetry[last]],
                "risk_id": RISKS.index(verdict.risk),
                "reason_id": REASONS.index(verdict.reason),
                "action_id": ACTIONS.index(verdict.action),
            }
        )
    return rows
