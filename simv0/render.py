"""Pictures of the demo world: a pinhole camera on the rover, floor and walls by ray, things as painted shapes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

CAMERA_HEIGHT = 0.4
"""Metres above the floor."""
HALF_VIEW = np.pi / 4
"""Half of the horizontal field of view: the focal length is half of the picture's width."""
NEAR, FAR = 0.08, 6.0
"""Nothing nearer is drawn; everything fades into dust up to here, m."""
WALL_HEIGHT = 1.5
"""Metres."""
SKY = (185, 205, 225)
HAZE = 190

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """A person, box or post: a round footprint at (x, y), and how it walks."""

    kind: str
    x: float
    y: float
    radius: float
    height: float
    vy: float = 0.0
    """Speed across the corridor now, m/s; 0 while a walker waits."""
    pace: float = 0.0
    """Speed across the corridor when nothing is in the way; 0 for what never moves."""


@dataclass(frozen=True)
class Look:
    """How one recording's surroundings look."""

    floor: Colour
    walls: tuple[Colour, Colour]
    light: float
    tile: float


def make_look(rng: np.random.Generator) -> Look:
    """Greyish floors and walls; the left wall is in the light, the right one in the shade."""
    floor, wall = rng.uniform(95, 135), rng.uniform(135, 165)
    tint = rng.uniform(-10, 10, size=3)
    left, right = (_colour(wall * share + tint) for share in (1.2, 0.75))
    floor_colour = _colour(floor + rng.uniform(-10, 10, size=3))
    return Look(floor_colour, (left, right), float(rng.uniform(0.85, 1.1)), float(rng.uniform(0.6, 1.2)))


def _colour(rgb: Float[np.ndarray, "3"]) -> Colour:
    r, g, b = (int(channel) for channel in rgb.clip(0, 255))
    return r, g, b


def project(ahead: float, left: float, up: float, size: tuple[int, int]) -> tuple[float, float]:
    """Pinhole projection of a point in the rover's frame (metres, `up` from the floor) to pixel (column, row).

    What is nearer than `NEAR` is drawn as if at `NEAR`.
    """
    width, height = size
    scale = width / 2 / max(ahead, NEAR)
    return width / 2 - left * scale, height / 2 - (up - CAMERA_HEIGHT) * scale


def render(
    pose: tuple[float, float, float],
    things: tuple[Thing, ...],
    half_width: float,
    look: Look,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Image.Image:
    """What the camera sees from pose (x, y, heading), with sensor noise, RGB."""
    x, y, heading = pose
    image = Image.fromarray(_surroundings(pose, half_width, look, size))
    draw = ImageDraw.Draw(image)
    cos, sin = np.cos(heading), np.sin(heading)

    def seen(thing: Thing) -> tuple[float, float]:
        dx, dy = thing.x - x, thing.y - y
        return float(cos * dx + sin * dy), float(-sin * dx + cos * dy)

    for (ahead, left), thing in sorted(((seen(thing), thing) for thing in things), key=lambda pair: -pair[0][0]):
        if NEAR < ahead < FAR:
            _paint(draw, thing, ahead, left, size)
    pixels = np.asarray(image, np.float32) * look.light + rng.normal(0, 3, size=(size[1], size[0], 1)).astype(
        np.float32
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _surroundings(
    pose: tuple[float, float, float], half_width: float, look: Look, size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """Floor, walls and sky: each pixel's ray meets the floor or a wall, whichever is nearer."""
    x, y, heading = pose
    width, height = size
    side = (width / 2 - np.arange(width, dtype=np.float32) - 0.5) / (width / 2)  # to the left, per metre ahead
    rise = (height / 2 - np.arange(height, dtype=np.float32) - 0.5)[:, None] / (width / 2)
    cos, sin = np.float32(np.cos(heading)), np.float32(np.sin(heading))
    along, across = cos - sin * side, sin + cos * side
    across = np.where(np.abs(across) < 1e-6, np.float32(1e-6), across)
    to_wall = np.float32(np.where(across > 0, half_width - y, half_width + y)) / np.abs(across)
    to_floor = np.float32(CAMERA_HEIGHT) / np.maximum(-rise, np.float32(1e-6))
    on_floor = to_floor < to_wall
    distance = np.minimum(np.minimum(to_floor, to_wall), np.float32(FAR))
    tile_x = np.floor((np.float32(x) + along * distance) / np.float32(look.tile)).astype(np.int32)
    tile_y = np.floor((np.float32(y) + across * distance) / np.float32(look.tile)).astype(np.int32)
    dark = (tile_x + tile_y * on_floor) & 1
    sky = CAMERA_HEIGHT + rise * to_wall > WALL_HEIGHT
    surface = np.where(sky, 3, np.where(on_floor, 2, across < 0))
    colours = np.array([*look.walls, look.floor, SKY], np.float32)
    haze = _haze(distance) * ~sky
    keep = (1 - haze) * (1 - np.float32(0.16) * (dark & ~sky))
    pixels: np.ndarray = (colours[surface] * keep[..., None] + HAZE * haze[..., None]).astype(np.uint8)
    return pixels


def _haze(distance: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Share of the picture that dust hides at a distance in m."""
    share: np.ndarray = np.minimum(distance / FAR, 1) ** 2
    return share


def _paint(draw: ImageDraw.ImageDraw, thing: Thing, ahead: float, left: float, size: tuple[int, int]) -> None:
    haze = float(_haze(np.array([ahead]))[0])

    def block(low: float, high: float, half: float, rgb: Colour) -> None:
        colour = _colour(np.array(rgb) * (1 - haze) + HAZE * haze)
        x0, y0 = project(ahead, left + half, high, size)
        x1, y1 = project(ahead, left - half, low, size)
        draw.rectangle((x0, y0, x1, y1), fill=colour)

    r, h = thing.radius, thing.height
    if thing.kind == "person":  # hi-vis from head to foot, for the camera that sees only legs, too
        block(0.0, 0.85 * h, r, (255, 120, 0))
        block(0.55 * h, 0.65 * h, r, (230, 255, 40))
        block(0.87 * h, h, 0.5 * r, (200, 150, 120))
    elif thing.kind == "box":
        block(0.0, h, r, (20, 60, 230))
        block(0.0, 0.15 * h, r, (10, 30, 120))
    else:
        block(0.0, h, r, (220, 0, 160))
        block(0.3, 0.5, r, (255, 255, 255))
