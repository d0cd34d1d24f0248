"""Draw scenes, and determine which thing each pixel shows."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tokenfold.scenes.world import REACH, SIZE, Scene, Thing

RGB = {
    "red": (214, 36, 40),
    "green": (36, 160, 60),
    "blue": (36, 78, 220),
    "yellow": (242, 222, 40),
    "purple": (146, 44, 176),
    "orange": (246, 134, 18),
    "white": (246, 246, 246),
    "black": (16, 16, 16),
}
JITTER = 12
STRIPES, DOTS = 4.6, 5.2  # period of the pattern, pixels
RIM = 0.75  # pixels
SUPERSAMPLING = 4  # masks are drawn this many times larger, then averaged
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)

Floats = npt.NDArray[np.float32]


def _star() -> list[tuple[float, float]]:
    corners = (-math.pi / 2 + math.pi * index / 5 for index in range(10))
    radii = (1.15, 0.52) * 5
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, corners, strict=True)]


# In units of a thing's radius; y points down.
POLYGONS = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -1.1), (1.03, 0.72), (-1.03, 0.72)],
    "star": _star(),
    "cross": [
        (-0.34, -1.05), (0.34, -1.05), (0.34, -0.34), (1.05, -0.34),
        (1.05, 0.34), (0.34, 0.34), (0.34, 1.05), (-0.34, 1.05),
        (-0.34, 0.34), (-1.05, 0.34), (-1.05, -0.34), (-0.34, -0.34),
    ],
}  # fmt: skip
HOLE = 0.48


def draw(scene: Scene) -> npt.NDArray[np.uint8]:
    """Return the pixels (96, 96, 3) of a scene; drawing is deterministic."""
    random = np.random.default_rng(scene.backdrop)
    canvas = _background(random)
    for thing in scene.things:
        box = _box(thing)
        paint = _paint(thing, box, random)
        canvas[box] += _mask(thing, box)[..., None] * (paint - canvas[box])
    canvas *= random.uniform(0.88, 1.08)
    strength = random.uniform(0, 12)
    canvas += random.standard_normal(canvas.shape, np.float32) * np.float32(strength)
    return canvas.clip(0, 255).astype(np.uint8)


def png(scene: Scene, compress_level: int = 6) -> bytes:
    """Encode the scene as a PNG file.

    Args:
        compress_level: zlib's compression level, 0 to 9; it does not change the pixels.
    """
    with io.BytesIO() as file:
        Image.fromarray(draw(scene)).save(file, "PNG", compress_level=compress_level)
        return file.getvalue()


def cover(scene: Scene) -> npt.NDArray[np.int64]:
    """Return the index of the visible thing at each pixel (96, 96); -1 is the background."""
    visible = np.full((SIZE, SIZE), -1, np.int64)
    for index, thing in enumerate(scene.things):
        box = _box(thing)
        visible[box][_mask(thing, box) > 0.5] = index
    return visible


def _box(thing: Thing) -> tuple[slice, slice]:
    """Return the rows and columns that a thing may cover."""
    reach = REACH * thing.radius + 1
    rows = slice(max(0, int(thing.y - reach)), min(SIZE, int(thing.y + reach) + 1))
    columns = slice(max(0, int(thing.x - reach)), min(SIZE, int(thing.x + reach) + 1))
    return rows, columns


def _mask(thing: Thing, box: tuple[slice, slice], rim: float = 0) -> Floats:
    """Return the fraction of each pixel of the box that a thing without its rim covers, 0 to 1."""
    rows, columns = box
    size = (columns.stop - columns.start) * SUPERSAMPLING, (rows.stop - rows.start) * SUPERSAMPLING
    enlarged = Image.new("L", size)
    pen = ImageDraw.Draw(enlarged)
    x, y, radius = (
        SUPERSAMPLING * value
        for value in (thing.x - columns.start, thing.y - rows.start, thing.radius)
    )
    rim *= SUPERSAMPLING
    if thing.shape in POLYGONS:
        cos, sin = radius * math.cos(thing.angle), radius * math.sin(thing.angle)
        corners = [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in POLYGONS[thing.shape]]
        # The outline has its width on both sides; outside the polygon, it removes nothing.
        pen.polygon(corners, fill=255, outline=0 if rim else 255, width=int(2 * rim) or 1)
    else:
        outer, hole = radius - rim, HOLE * radius + rim
        pen.ellipse((x - outer, y - outer, x + outer, y + outer), fill=255)
        if thing.shape == "ring":
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    mask: Floats = np.asarray(enlarged.reduce(SUPERSAMPLING), np.float32) / np.float32(255)
    return mask


def _paint(thing: Thing, box: tuple[slice, slice], random: np.random.Generator) -> Floats:
    """Return the colours of a thing, (3,) or (rows, columns, 3), as if it filled its box."""
    colour = np.array(RGB[thing.colour], np.float32)
    colour += random.uniform(-JITTER, JITTER, 3).astype(np.float32)
    rotation = thing.angle + random.uniform(0, math.pi)
    if thing.texture == "plain":
        return colour
    x, y = COLUMNS[box] - thing.x, ROWS[box] - thing.y
    u, v = (
        x * math.cos(rotation) + y * math.sin(rotation),
        y * math.cos(rotation) - x * math.sin(rotation),
    )
    if thing.texture == "striped":
        pattern = np.cos(u * np.float32(2 * math.pi / STRIPES)) - 0.1
    else:
        step = np.float32(2 * math.pi / DOTS)
        pattern = np.cos(u * step) + np.cos(v * step) - 0.75
    # Stripes may reach the rim, dots may not: that distinguishes them on small things. The grey
    # marks of white and black things stay inside too: at the rim, they would look like background.
    is_grey = thing.colour in ("white", "black")
    inside = _mask(thing, box, RIM) if is_grey or thing.texture == "dotted" else np.float32(1)
    amount = ((0.5 + 2.0 * pattern).clip(0, 1) * inside)[..., None]
    # Light things get dark marks, and dark things light ones; the hue stays the same.
    is_light = thing.colour in ("white", "yellow", "orange", "green")
    mark_colour = (
        colour * np.float32(0.4) if is_light else colour + np.float32(0.6) * (255 - colour)
    )
    paint: Floats = (colour + amount * (mark_colour - colour)).astype(np.float32)
    return paint


def _background(random: np.random.Generator) -> Floats:
    """Draw muted greys, which cannot be mistaken for the colour of a thing."""
    grey, contrast = random.uniform(95, 160), random.uniform(6, 22)
    tint = random.uniform(-10, 10, (2, 3))
    rotation = random.uniform(0, 2 * math.pi)
    across = COLUMNS * np.float32(math.cos(rotation)) + ROWS * np.float32(math.sin(rotation))
    pattern_type = random.random()
    if pattern_type < 0.3:
        field = (across - across.mean()) / 48
    elif pattern_type < 0.6:
        field = np.sin(across * np.float32(2 * math.pi / random.uniform(8, 40)))
    elif pattern_type < 0.85:
        cells = int(random.integers(6, 49))
        coarse = Image.fromarray(random.random((cells, cells), np.float32))
        field = 2 * np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) - 1
    else:
        field = np.zeros_like(across)
    ends = (grey + tint + np.array([[-contrast], [contrast]])).astype(np.float32)
    weights = (0.5 + 0.5 * field[..., None]).clip(0, 1)
    pixels: Floats = (ends[0] + weights * (ends[1] - ends[0])).astype(np.float32)
    return pixels
