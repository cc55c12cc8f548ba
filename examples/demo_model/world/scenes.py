"""The demo model's first world: pictures of plain coloured shapes.

A :class:`Scene` says what is in a picture; :func:`draw_scene` draws it. Drawing twice gives the
same pixels. This file knows nothing of questions, tokens or training.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 30), (235, 50, 45), (205, 0, 0)),
    "orange": ((255, 165, 0), (255, 140, 0), (245, 130, 30)),
    "yellow": ((255, 255, 0), (250, 220, 20), (255, 235, 60)),
    "green": ((0, 128, 0), (0, 200, 0), (40, 160, 60), (0, 255, 0), (34, 139, 34)),
    "blue": ((0, 0, 255), (30, 80, 220), (20, 40, 170), (30, 144, 255)),
    "purple": ((128, 0, 128), (120, 30, 170), (148, 0, 211)),
    "pink": ((255, 192, 203), (255, 105, 180), (250, 150, 190)),
    "brown": ((139, 69, 19), (110, 65, 30), (150, 85, 40)),
    "black": ((0, 0, 0), (25, 25, 25)),
    "white": ((255, 255, 255), (245, 245, 245)),
    "gray": ((128, 128, 128), (150, 150, 150), (105, 105, 105)),
}
"""Colour names and the tones that are drawn for each, the CSS tone among them."""

SHAPES = ("circle", "square", "triangle", "rectangle", "star", "diamond", "heart", "cross")

BACKGROUNDS: tuple[tuple[str, RGB], ...] = (
    ("white", (255, 255, 255)),
    ("white", (250, 250, 250)),
    ("white", (255, 255, 255)),
    ("black", (0, 0, 0)),
    ("black", (20, 20, 20)),
    ("gray", (128, 128, 128)),
    ("gray", (190, 190, 190)),
    ("gray", (80, 80, 80)),
    ("", (245, 240, 225)),
    ("", (225, 235, 245)),
    ("", (230, 245, 230)),
    ("", (30, 40, 70)),
    ("", (60, 90, 70)),
    ("", (240, 225, 225)),
    ("yellow", (255, 240, 130)),
    ("blue", (150, 190, 255)),
    ("blue", (20, 30, 140)),
    ("green", (170, 230, 170)),
    ("pink", (255, 215, 225)),
)
"""Name (empty where people would disagree about it) and tone of the plain backgrounds."""

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@dataclass(frozen=True)
class Shape:
    """One shape; centre and size are fractions of the picture's width, height and shorter side."""

    kind: str
    colour: str
    tone: RGB
    x: float
    y: float
    size: float
    turn: float = 0.0

    @property
    def place(self) -> str | None:
        """One of the nine places, or ``None`` near the line between two of them."""
        column, row = third(self.x), third(self.y)
        return None if column is None or row is None else PLACES[row][column]

    @property
    def name(self) -> str:
        """For example ``red circle``."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """What is in a picture, shapes in reading order, and how the picture is made."""

    width: int
    height: int
    background: str
    tone: RGB
    shapes: tuple[Shape, ...]
    border: int = 0
    border_tone: RGB = (0, 0, 0)
    smooth: bool = True
    codec: str = ""
    quality: int = 85
    outline: bool = False


def third(position: float, margin: float = 0.045) -> int | None:
    """Return the third of the unit interval, 0 to 2, or ``None`` within ``margin`` of a line."""
    if min(abs(position - 1 / 3), abs(position - 2 / 3)) < margin:
        return None
    return min(2, int(position * 3))


def distance(a: RGB, b: RGB) -> float:
    """Return the distance of two tones, weighted roughly as eyes do."""
    return math.sqrt(2 * (a[0] - b[0]) ** 2 + 4 * (a[1] - b[1]) ** 2 + 3 * (a[2] - b[2]) ** 2) / 3


def outline_points(shape: Shape, width: int, height: int) -> list[tuple[float, float]]:
    """Return the polygon of a shape in pixels; circles are drawn by their box instead."""
    radius = shape.size * min(width, height) / 2
    if shape.kind == "square":
        unit = [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    elif shape.kind == "rectangle":
        unit = [(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)]
    elif shape.kind == "triangle":
        unit = [(0, -0.95), (1, 0.8), (-1, 0.8)]
    elif shape.kind == "diamond":
        unit = [(0, -1.05), (0.8, 0), (0, 1.05), (-0.8, 0)]
    elif shape.kind == "cross":
        a = 0.32
        unit = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
        unit += [(a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    elif shape.kind == "star":
        unit = []
        for k in range(10):
            r = 1.1 if k % 2 == 0 else 0.45
            angle = math.pi * (k / 5 - 0.5)
            unit.append((r * math.cos(angle), r * math.sin(angle)))
    elif shape.kind == "heart":
        unit = []
        for k in range(40):
            t = 2 * math.pi * k / 40
            across = 16 * math.sin(t) ** 3
            up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            unit.append((across / 16, -up / 15 - 0.1))
    else:
        raise ValueError(f"no outline for {shape.kind!r}")
    cos, sin = math.cos(shape.turn), math.sin(shape.turn)
    return [
        (
            shape.x * width + radius * (u * cos - v * sin),
            shape.y * height + radius * (u * sin + v * cos),
        )
        for u, v in unit
    ]


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture of ``scene.width`` x ``scene.height`` pixels."""
    factor = 2 if scene.smooth and max(scene.width, scene.height) < 500 else 1
    width, height = scene.width * factor, scene.height * factor
    image = Image.new("RGB", (width, height), scene.tone)
    pen = ImageDraw.Draw(image)
    line = (90, 90, 90) if sum(scene.tone) > 380 else (200, 200, 200)
    stroke = max(1, round(min(width, height) / 150))
    for shape in scene.shapes:
        edge = line if scene.outline else shape.tone
        if shape.kind == "circle":
            radius = shape.size * min(width, height) / 2 * 0.97
            x, y = shape.x * width, shape.y * height
            box = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(box, fill=shape.tone, outline=edge, width=stroke)
        else:
            points = outline_points(shape, width, height)
            pen.polygon(points, fill=shape.tone)
            if scene.outline:
                pen.line([*points, points[0]], fill=edge, width=stroke, joint="curve")
    if factor > 1:
        image = image.resize((scene.width, scene.height), Image.Resampling.BOX)
    if scene.border:
        framed = ImageDraw.Draw(image)
        box = (0, 0, scene.width - 1, scene.height - 1)
        framed.rectangle(box, outline=scene.border_tone, width=scene.border)
    return through_codec(image, scene.codec, scene.quality)


def through_codec(image: Image.Image, codec: str, quality: int) -> Image.Image:
    """Return the picture after a lossy format (``JPEG``, ``WEBP``), or unchanged for ``""``."""
    if not codec:
        return image
    buffer = io.BytesIO()
    image.save(buffer, codec, quality=quality)
    return Image.open(buffer).convert("RGB")


def random_size(rng: random.Random) -> tuple[int, int]:
    """Return width and height: half of the pictures square, the others up to 3:2."""
    longer = rng.choice((96, 128, 160, 200, 224, 256, 300, 336, 384, 400, 480, 512, 640))
    kind = rng.random()
    if kind < 0.5:
        return longer, longer
    ratio = rng.uniform(1.0, 1.34) if kind < 0.85 else rng.uniform(1.34, 1.55)
    shorter = round(longer / ratio)
    return (longer, shorter) if rng.random() < 0.7 else (shorter, longer)


def jitter(tone: RGB, rng: random.Random, amount: int) -> RGB:
    """Return a tone moved by up to ``amount`` in every channel."""
    r, g, b = (min(255, max(0, channel + rng.randint(-amount, amount))) for channel in tone)
    return (r, g, b)


def random_shape(
    rng: random.Random, tone_of_background: RGB, x: float, y: float, size: float
) -> Shape:
    """Return a shape whose colour can be told from the background."""
    while True:
        colour = rng.choice(tuple(COLOURS))
        tone = rng.choice(COLOURS[colour])
        if rng.random() < 0.6:
            tone = jitter(tone, rng, 10 if colour in ("black", "white", "gray") else 14)
        far = 120 if colour in ("black", "white", "gray") else 90
        if distance(tone, tone_of_background) >= far:
            break
    kind = rng.choice(SHAPES)
    turn = 0.0
    if kind == "rectangle" and rng.random() < 0.4:
        turn = math.pi / 2
    elif rng.random() < 0.25 and kind != "diamond":
        turn = rng.uniform(-0.16, 0.16)
    return Shape(kind, colour, tone, x, y, size, turn)


def random_scene(rng: random.Random, shapes: int | None = None) -> Scene:
    """Return a scene of 0 to 6 shapes (or as many as told); equal generators give equal scenes."""
    width, height = random_size(rng)
    background, tone = rng.choice(BACKGROUNDS)
    if rng.random() < 0.4:
        tone = jitter(tone, rng, 5)
    count = shapes if shapes is not None else rng.choice((1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 6))
    if shapes is None and rng.random() < 0.015:
        count = 0
    drawn: list[Shape] = []
    if count == 1:
        size = rng.uniform(0.22, 0.85)
        half = size / 2 + 0.02
        scale = min(width, height)
        mx, my = half * scale / width, half * scale / height
        x, y = rng.uniform(mx, 1 - mx), rng.uniform(my, 1 - my)
        if size > 0.5 and rng.random() < 0.6:
            x, y = 0.5, 0.5
        drawn.append(random_shape(rng, tone, x, y, size))
    else:
        # A cell of a three by three board each, moved a little: places and order stay clear.
        for cell in sorted(rng.sample(range(9), count)):
            row, column = divmod(cell, 3)
            x = (column + 0.5) / 3 + rng.uniform(-0.06, 0.06)
            y = (row + 0.5) / 3 + rng.uniform(-0.06, 0.06)
            drawn.append(random_shape(rng, tone, x, y, rng.uniform(0.22, 0.32)))
    codec = rng.choice(("", "", "", "JPEG", "WEBP"))
    return Scene(
        width=width,
        height=height,
        background=background,
        tone=tone,
        shapes=tuple(drawn),
        border=rng.choice((0, 0, 0, 0, 1, 2, 4)),
        border_tone=rng.choice(((0, 0, 0), (90, 90, 90), (255, 255, 255))),
        smooth=rng.random() < 0.6,
        codec=codec,
        quality=rng.randint(55, 95),
        outline=rng.random() < 0.15,
    )
