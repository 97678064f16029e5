"""Pictures of the demo world: a pinhole camera on the rover, floor and walls by ray, things as painted shapes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from simv0.demo.hazards import Pose, Thing

CAMERA_HEIGHT = 0.4
"""Metres above the floor."""
NEAR, FAR = 0.08, 6.0
"""Nothing nearer is drawn; everything fades into dust up to here, m."""
WALL_HEIGHT = 1.5
"""Metres."""
SKY = (185, 205, 225)
HAZE = 190

Colour = tuple[int, int, int]


BLOCKS: dict[str, list[tuple[float, float, float, Colour]]] = {
    # hi-vis from head to foot: close up, the camera sees only legs
    "person": [(0, 0.85, 1, (255, 120, 0)), (0.55, 0.65, 1, (230, 255, 40)), (0.87, 1, 0.5, (200, 150, 120))],
    "box": [(0, 1, 1, (20, 60, 230)), (0, 0.15, 1, (10, 30, 120))],
    "post": [(0, 1, 1, (220, 0, 160)), (0.2, 0.33, 1, (255, 255, 255))],
}
"""What a thing looks like: (from, to) as shares of its height, share of its width, colour."""


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


def render(state: Pose, half_width: float, look: Look, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """What the camera sees, RGB, with the sensor's noise; the yard's walls are at y = +-half_width."""
    image = Image.fromarray(_surroundings(state, half_width, look, size))
    draw = ImageDraw.Draw(image)
    seen = [(*state.position_of(thing), thing) for thing in state.things]
    for ahead, left, thing in sorted(seen, key=lambda item: -item[0]):  # the nearest is painted last
        if NEAR < ahead < FAR:
            _paint(draw, thing, ahead, left, size)
    noise = rng.normal(0, 3, size=(size[1], size[0], 1)).astype(np.float32)
    pixels = np.asarray(image, np.float32) * look.light + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _surroundings(state: Pose, half_width: float, look: Look, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Floor, walls and sky: each pixel's ray meets the floor or a wall, whichever is nearer."""
    width, height = size
    side = (width / 2 - np.arange(width, dtype=np.float32) - 0.5) / (width / 2)  # to the left, per metre ahead
    rise = (height / 2 - np.arange(height, dtype=np.float32) - 0.5)[:, None] / (width / 2)
    cos, sin = np.float32(np.cos(state.heading)), np.float32(np.sin(state.heading))
    along, across = cos - sin * side, sin + cos * side
    across = np.where(np.abs(across) < 1e-6, np.float32(1e-6), across)
    to_wall = np.float32(np.where(across > 0, half_width - state.y, half_width + state.y)) / np.abs(across)
    to_floor = np.float32(CAMERA_HEIGHT) / np.maximum(-rise, np.float32(1e-6))
    on_floor = to_floor < to_wall
    distance = np.minimum(np.minimum(to_floor, to_wall), np.float32(FAR))
    tile_x = np.floor((np.float32(state.x) + along * distance) / np.float32(look.tile)).astype(np.int32)
    tile_y = np.floor((np.float32(state.y) + across * distance) / np.float32(look.tile)).astype(np.int32)
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
    """Upright coloured blocks, each a share of the thing's height and width."""
    haze = min(ahead / FAR, 1) ** 2
    for low, high, half, rgb in BLOCKS[thing.kind]:
        x0, y0 = project(ahead, left + half * thing.radius, high * thing.height, size)
        x1, y1 = project(ahead, left - half * thing.radius, low * thing.height, size)
        draw.rectangle((x0, y0, x1, y1), fill=_colour(np.array(rgb) * (1 - haze) + HAZE * haze))
