"""What things look like in a built-in scene: the flat shapes and the colours of every thing.

A shape is a list of parts drawn in order; a part is a tone and a polygon. Shapes live in their own frame:
x to the right with 0 at the middle, y upwards from 0 at the feet to 1 at the top. Tones become colours anew
for every thing drawn, and usual colours have exceptions: a thing is known by its shape.
"""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Part = tuple[str, NDArray[np.float64]]
Shape = tuple[Part, ...]

INK: Colour = (28, 26, 34)
WHITE: Colour = (250, 250, 246)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from hue (a full turn is 1), saturation and value in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with so large a share of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def any_hue(rng: Generator) -> Colour:
    """Paint, cloth or petals."""
    return hsv(rng.random(), rng.uniform(0.45, 0.95), rng.uniform(0.5, 1))


# Hue, saturation and value, each from and to, of the things that have a usual colour.
_USUAL: dict[str, tuple[float, float, float, float, float, float]] = {
    "tree": (0.1, 0.42, 0.45, 0.9, 0.35, 0.85), "house": (0.02, 0.14, 0.1, 0.5, 0.7, 1),
    "bus": (0, 0.15, 0.7, 1, 0.75, 1), "plane": (0.5, 0.65, 0, 0.25, 0.75, 1),
    "sun": (0, 0.17, 0.25, 0.9, 0.9, 1), "umbrella": (0.9, 1.05, 0.7, 1, 0.6, 0.95),
    "dog": (0.03, 0.1, 0.3, 0.75, 0.25, 0.65), "cat": (0.06, 0.11, 0.5, 0.85, 0.8, 1),
    "sheep": (0.05, 0.15, 0, 0.2, 0.75, 1), "flower": (0.8, 1.16, 0.6, 0.95, 0.8, 1),
    "chair": (0.04, 0.1, 0.5, 0.8, 0.35, 0.75),
}  # fmt: skip
_UNUSUAL = 0.25  # share of such things that have any colour all the same


def _main_colour(rng: Generator, thing: str) -> Colour:
    if thing not in _USUAL or rng.random() < _UNUSUAL:
        return any_hue(rng)
    hue, hue_to, saturation, saturation_to, value, value_to = _USUAL[thing]
    return hsv(rng.uniform(hue, hue_to), rng.uniform(saturation, saturation_to), rng.uniform(value, value_to))


_FIXED: dict[str, Colour] = {
    "ink": INK, "white": WHITE, "steel": (170, 172, 178), "lamp": (255, 236, 150), "beak": (246, 160, 40),
    "eye": (180, 215, 90),
}  # fmt: skip
_DRAWN: dict[str, Callable[[Generator], Colour]] = {
    "other": lambda rng: any_hue(rng) if rng.random() < 0.8 else WHITE,
    "wood": lambda rng: hsv(rng.uniform(0.04, 0.09), 0.55, rng.uniform(0.3, 0.6)),
    "leaf": lambda rng: hsv(rng.uniform(0.25, 0.4), 0.7, rng.uniform(0.4, 0.7)),
    "glass": lambda rng: hsv(rng.uniform(0.5, 0.6), rng.uniform(0.15, 0.4), rng.uniform(0.5, 0.95)),
    "skin": lambda rng: hsv(rng.uniform(0.04, 0.08), rng.uniform(0.3, 0.6), rng.uniform(0.45, 1)),
    "hair": lambda rng: hsv(rng.uniform(0.02, 0.13), rng.uniform(0.2, 0.7), rng.uniform(0.1, 0.8)),
}


def tones(rng: Generator, thing: str, shape: Shape) -> dict[str, Colour]:
    """Colours for the tones that a shape of this thing uses."""
    main = _main_colour(rng, thing)
    colours = _FIXED | {"main": main, "dim": mix(main, INK, 0.32), "lit": mix(main, WHITE, 0.4)}
    for tone, _ in shape:
        if tone not in colours:
            colours[tone] = _DRAWN[tone](rng)
    return colours


def _poly(tone: str, *xy: float) -> Part:
    return tone, np.array(xy, dtype=np.float64).reshape(-1, 2)


def _box(tone: str, left: float, low: float, right: float, high: float) -> Part:
    return _poly(tone, left, low, right, low, right, high, left, high)


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> NDArray[np.float64]:
    """Points on an ellipse from angle `start` to `stop` (degrees, anticlockwise from the right)."""
    steps = max(3, round(abs(stop - start) / 24))
    angles = np.radians(np.linspace(start, stop, steps + 1))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _disc(tone: str, x: float, y: float, rx: float, ry: float | None = None) -> Part:
    return tone, _arc(x, y, rx, rx if ry is None else ry, 0, 360)


def _sector(tone: str, x: float, y: float, rx: float, ry: float, start: float, stop: float) -> Part:
    return tone, np.concatenate([[[x, y]], _arc(x, y, rx, ry, start, stop)])


def _ring(tone: str, x: float, y: float, radius: float, width: float) -> Part:
    """One contour out and back: the even-odd rule leaves the hole."""
    inner = radius - width
    return tone, np.concatenate([_arc(x, y, radius, radius, 0, 360), _arc(x, y, inner, inner, 360, 0)])


def _stroke(tone: str, width: float, *xy: float) -> Part:
    """A polyline of the given width."""
    path = np.array(xy, dtype=np.float64).reshape(-1, 2)
    along = np.asarray(np.gradient(path, axis=0))
    across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True)
    return tone, np.concatenate([path + across * width / 2, (path - across * width / 2)[::-1]])


def _wheel(x: float, radius: float) -> Shape:
    return _disc("ink", x, radius, radius), _disc("steel", x, radius, radius * 0.45)


def _legs(tone: str, width: float, height: float, *xs: float) -> Shape:
    return tuple(_box(tone, x - width / 2, 0, x + width / 2, height) for x in xs)


def _wreath(tones_in_turn: tuple[str, ...], y: float, reach: float, radius: float) -> Shape:
    """Discs around (0, y)."""
    angles = 2 * math.pi * np.arange(len(tones_in_turn)) / len(tones_in_turn) + 0.3
    centres = zip(tones_in_turn, reach * np.cos(angles), y + reach * np.sin(angles), strict=True)
    return tuple(_disc(tone, float(x), float(y), radius) for tone, x, y in centres)


def _rays(count: int, inner: float, outer: float) -> Shape:
    def ray(angle: float) -> Part:
        left, right = angle - 0.16, angle + 0.16
        corners = [(inner, left), (outer, angle), (inner, right)]
        return "main", np.array([(r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in corners])

    return tuple(ray(2 * math.pi * k / count) for k in range(count))


# fmt: off
SHAPES: dict[str, tuple[Shape, ...]] = {
    "tree": (
        (_box("wood", -0.07, 0, 0.07, 0.45), _disc("dim", 0.18, 0.56, 0.2),
         _disc("main", -0.17, 0.58, 0.21), _disc("main", 0.02, 0.72, 0.28),
         _disc("lit", -0.08, 0.8, 0.12)),
        (_box("wood", -0.06, 0, 0.06, 0.2), _poly("dim", -0.36, 0.15, 0.36, 0.15, 0, 0.6),
         _poly("main", -0.29, 0.4, 0.29, 0.4, 0, 0.8), _poly("lit", -0.2, 0.65, 0.2, 0.65, 0, 1)),
        (_stroke("wood", 0.09, 0.06, 0, 0, 0.3, 0.02, 0.55, 0.1, 0.78),
         _poly("dim", 0.1, 0.8, -0.15, 0.78, -0.3, 0.55, -0.05, 0.7),
         _poly("main", 0.1, 0.8, 0.3, 0.75, 0.42, 0.52, 0.22, 0.68),
         _poly("main", 0.1, 0.76, -0.05, 0.96, -0.34, 0.86, -0.1, 0.84),
         _poly("lit", 0.1, 0.76, 0.25, 1.0, 0.5, 0.84, 0.27, 0.86)),
    ),
    "house": (
        (_box("main", -0.46, 0, 0.46, 0.55), _box("dim", 0.2, 0.7, 0.32, 1),
         _poly("other", -0.6, 0.52, 0.6, 0.52, 0, 0.98), _box("wood", -0.1, 0, 0.12, 0.36),
         _box("glass", -0.38, 0.2, -0.18, 0.4), _box("glass", 0.2, 0.2, 0.38, 0.4)),
        (_box("main", -0.6, 0, 0.6, 0.5), _poly("other", -0.7, 0.47, 0.7, 0.47, 0.46, 0.9, -0.46, 0.9),
         _box("dim", -0.34, 0.75, -0.2, 1), _box("wood", 0.2, 0, 0.42, 0.37),
         *(_box("glass", x, 0.16, x + 0.2, 0.38) for x in (-0.48, -0.16))),
    ),
    "car": (
        (_poly("dim", -0.55, 0.5, -0.34, 0.98, 0.26, 0.98, 0.56, 0.5),
         _poly("glass", -0.42, 0.55, -0.27, 0.88, -0.06, 0.88, -0.06, 0.55),
         _poly("glass", 0.04, 0.55, 0.04, 0.88, 0.21, 0.88, 0.41, 0.55),
         _poly("main", -0.88, 0.2, -0.86, 0.54, 0.62, 0.58, 0.9, 0.44, 0.92, 0.2),
         _box("lamp", 0.8, 0.34, 0.92, 0.46), *_wheel(-0.5, 0.22), *_wheel(0.52, 0.22)),
    ),
    "bus": (
        (_poly("main", -1, 0.14, -1, 0.93, -0.93, 1, 0.93, 1, 1, 0.9, 1, 0.14),
         _box("other", -1, 0.3, 1, 0.42),
         *(_box("glass", x, 0.52, x + 0.26, 0.86) for x in (-0.92, -0.6, -0.28, 0.04)),
         _box("glass", 0.4, 0.2, 0.62, 0.86), _box("glass", 0.76, 0.48, 1, 0.86), *_wheel(-0.58, 0.18),
         *_wheel(0.2, 0.18)),
    ),
    "bicycle": (
        (_ring("ink", -0.5, 0.34, 0.35, 0.085), _ring("ink", 0.5, 0.34, 0.35, 0.085),
         _stroke("main", 0.1, -0.5, 0.34, -0.2, 0.72, 0.34, 0.74, -0.02, 0.32, -0.5, 0.34),
         _stroke("main", 0.09, -0.24, 0.86, -0.02, 0.32), _stroke("main", 0.09, 0.5, 0.34, 0.3, 0.96),
         _stroke("ink", 0.09, 0.14, 0.96, 0.34, 0.96, 0.44, 0.86),
         _box("ink", -0.38, 0.84, -0.12, 0.93)),
    ),
    "boat": (
        (_box("wood", -0.02, 0.2, 0.04, 1), _poly("other", 0.07, 0.32, 0.07, 1, 0.5, 0.32),
         _poly("lit", -0.06, 0.32, -0.06, 0.86, -0.4, 0.32),
         _poly("main", -0.56, 0.27, 0.6, 0.27, 0.4, 0, -0.4, 0)),
        (_box("white", -0.3, 0.4, 0.3, 0.74),
         *(_box("glass", x, 0.5, x + 0.14, 0.66) for x in (-0.22, 0.06)),
         _box("other", -0.1, 0.7, 0.1, 1), _poly("main", -0.85, 0.46, 0.9, 0.52, 0.62, 0, -0.66, 0),
         _poly("dim", -0.72, 0.16, 0.71, 0.16, 0.62, 0, -0.66, 0)),
    ),
    "plane": (
        (_poly("dim", 0.1, 0.5, -0.3, 0.98, -0.5, 0.98, -0.22, 0.5),
         _poly("other", -0.82, 0.5, -1.14, 1, -0.92, 1, -0.55, 0.56),
         _poly("main", -1.1, 0.56, -0.6, 0.34, 0.7, 0.3, 0.98, 0.36, 1.12, 0.46, 0.94, 0.6, 0.7, 0.66),
         *(_disc("glass", x, 0.53, 0.055) for x in (-0.45, -0.2, 0.05, 0.3, 0.55)),
         _poly("glass", 0.8, 0.5, 1.08, 0.5, 0.92, 0.61, 0.8, 0.61),
         _poly("dim", 0.2, 0.42, -0.36, 0, -0.58, 0, -0.26, 0.42)),
    ),
    "bird": (
        (_poly("main", -0.36, 0.46, -0.9, 0.66, -0.84, 0.36),
         _poly("main", -0.05, 0.4, -0.5, 1, -0.22, 1, 0.3, 0.5), _disc("main", 0, 0.42, 0.46, 0.2),
         _poly("dim", 0.16, 0.46, 0.02, 0.0, -0.2, 0.0, -0.24, 0.4), _disc("main", 0.44, 0.56, 0.18),
         _poly("beak", 0.58, 0.64, 0.86, 0.52, 0.58, 0.48), _disc("ink", 0.5, 0.6, 0.05)),
        (*_legs("beak", 0.05, 0.26, -0.06, 0.1),
         _poly("dim", -0.3, 0.5, -0.82, 0.36, -0.76, 0.16, -0.2, 0.3),
         _disc("main", 0, 0.46, 0.42, 0.26), _disc("main", 0.3, 0.78, 0.22),
         _poly("beak", 0.46, 0.86, 0.78, 0.74, 0.46, 0.68),
         _poly("dim", 0.14, 0.56, -0.46, 0.46, -0.14, 0.32, 0.1, 0.36), _disc("ink", 0.36, 0.82, 0.055)),
    ),
    "sun": (
        (_disc("main", 0, 0.5, 0.42), _disc("lit", -0.05, 0.55, 0.26)),
        (*_rays(10, 0.3, 0.58), _disc("main", 0, 0.5, 0.33), _disc("lit", 0, 0.5, 0.22)),
    ),
    "kite": (
        (_stroke("ink", 0.045, 0, 0.4, 0.1, 0.25, -0.06, 0.12, 0.06, 0),
         _disc("main", 0.08, 0.25, 0.09, 0.05), _disc("other", -0.04, 0.1, 0.09, 0.05),
         _poly("main", 0, 1, -0.32, 0.72, 0, 0.72), _poly("other", 0, 1, 0.32, 0.72, 0, 0.72),
         _poly("other", 0, 0.34, -0.32, 0.72, 0, 0.72), _poly("main", 0, 0.34, 0.32, 0.72, 0, 0.72)),
    ),
    "umbrella": (
        (_stroke("wood", 0.06, 0, 0.95, 0, 0.12, 0.05, 0.03, 0.15, 0.03, 0.19, 0.12),
         *(_sector("main" if k % 2 else "other", 0, 0.52, 0.62, 0.44, 36 * k, 36 * k + 36) for k in range(5)),
         _box("ink", -0.025, 0.94, 0.025, 1)),
    ),
    "person": (
        (*_legs("other", 0.13, 0.42, -0.085, 0.085), _stroke("skin", 0.085, -0.16, 0.74, -0.23, 0.42),
         _stroke("skin", 0.085, 0.16, 0.74, 0.23, 0.42),
         _poly("main", -0.2, 0.78, 0.2, 0.78, 0.155, 0.38, -0.155, 0.38), _disc("hair", 0, 0.9, 0.115),
         _disc("skin", 0.015, 0.875, 0.09)),
        (_stroke("other", 0.13, 0, 0.45, 0.1, 0.22, 0.16, 0),
         _stroke("other", 0.13, 0, 0.45, -0.09, 0.22, -0.2, 0),
         _stroke("skin", 0.085, -0.14, 0.74, -0.3, 0.56, -0.22, 0.44),
         _stroke("skin", 0.085, 0.14, 0.74, 0.3, 0.84, 0.34, 0.98),
         _poly("main", -0.18, 0.78, 0.18, 0.78, 0.15, 0.38, -0.15, 0.38), _disc("hair", 0, 0.9, 0.115),
         _disc("skin", 0.02, 0.875, 0.09)),
        (*_legs("skin", 0.09, 0.3, -0.07, 0.07), _stroke("main", 0.085, -0.12, 0.74, -0.25, 0.46),
         _stroke("main", 0.085, 0.12, 0.74, 0.25, 0.46),
         _poly("main", -0.12, 0.78, 0.12, 0.78, 0.1, 0.55, 0.27, 0.22, -0.27, 0.22, -0.1, 0.55),
         _disc("hair", -0.01, 0.87, 0.14), _disc("skin", 0.015, 0.87, 0.09)),
    ),
    "dog": (
        (_stroke("main", 0.12, -0.5, 0.6, -0.68, 0.74, -0.72, 0.98),
         *_legs("dim", 0.13, 0.4, -0.3, 0.36), *_legs("main", 0.13, 0.4, -0.46, 0.2),
         _poly("main", -0.56, 0.62, -0.5, 0.32, 0.4, 0.3, 0.5, 0.66, 0.3, 0.72),
         _poly("main", 0.26, 0.6, 0.3, 0.94, 0.5, 1, 0.66, 0.9, 0.96, 0.82, 0.94, 0.66, 0.52, 0.6),
         _poly("dim", 0.3, 0.96, 0.48, 0.96, 0.42, 0.58, 0.28, 0.56),
         _disc("dim", -0.26, 0.54, 0.13), _disc("ink", 0.92, 0.8, 0.07), _disc("ink", 0.62, 0.86, 0.045)),
    ),
    "cat": (
        (_stroke("dim", 0.11, 0.1, 0.06, 0.46, 0.06, 0.56, 0.24, 0.44, 0.42),
         _poly("main", -0.3, 0, -0.24, 0.36, -0.12, 0.6, 0.12, 0.6, 0.26, 0.34, 0.32, 0),
         _box("dim", -0.03, 0, 0.03, 0.24), *(_box("dim", -0.24, y, 0.24, y + 0.05) for y in (0.3, 0.42)),
         _poly("main", -0.28, 0.68, -0.3, 1, -0.06, 0.84),
         _poly("main", 0.28, 0.68, 0.3, 1, 0.06, 0.84), _disc("main", 0, 0.7, 0.29, 0.22),
         *(_disc("eye", x, 0.73, 0.06) for x in (-0.1, 0.1)), _poly("ink", -0.05, 0.64, 0.05, 0.64, 0, 0.58)),
        (_stroke("main", 0.1, -0.46, 0.4, -0.62, 0.6, -0.52, 0.78, -0.64, 0.96),
         *_legs("dim", 0.09, 0.3, -0.32, 0.3), *_legs("main", 0.09, 0.3, -0.44, 0.18),
         _disc("main", -0.06, 0.4, 0.48, 0.18),
         *(_box("dim", x, 0.26, x + 0.08, 0.56) for x in (-0.3, -0.1, 0.1)),
         _poly("main", 0.24, 0.66, 0.24, 0.94, 0.42, 0.8), _poly("main", 0.66, 0.66, 0.68, 0.94, 0.48, 0.8),
         _disc("main", 0.46, 0.62, 0.24, 0.2), *(_disc("eye", x, 0.66, 0.05) for x in (0.38, 0.56))),
    ),
    "sheep": (
        (*_legs("ink", 0.09, 0.36, -0.36, -0.18, 0.18, 0.34),
         *(_disc("main", x, y, 0.22) for x, y in ((-0.42, 0.5), (-0.3, 0.72), (0.02, 0.78), (0.3, 0.7))),
         *(_disc("main", x, y, 0.22) for x, y in ((0.38, 0.48), (0.1, 0.36), (-0.2, 0.36), (0, 0.55))),
         *(_disc("lit", x, y, 0.1) for x, y in ((-0.26, 0.76), (0.06, 0.82), (-0.1, 0.58), (0.2, 0.58))),
         _disc("ink", 0.56, 0.68, 0.19, 0.22), _poly("ink", 0.5, 0.8, 0.24, 0.82, 0.44, 0.66),
         _disc("main", 0.52, 0.88, 0.13, 0.09)),
    ),
    "flower": (
        (_box("leaf", -0.04, 0, 0.04, 0.6), _poly("leaf", 0, 0.12, 0.34, 0.36, 0.12, 0.08),
         _poly("leaf", 0, 0.06, -0.34, 0.26, -0.1, 0.02), *_wreath(("main", "lit") * 3, 0.7, 0.2, 0.14),
         _disc("other", 0, 0.7, 0.11)),
        (_box("leaf", -0.04, 0, 0.04, 0.6), _poly("leaf", -0.02, 0.05, 0.28, 0.5, 0.1, 0.05),
         _poly("leaf", 0.02, 0.05, -0.28, 0.42, -0.1, 0.05),
         _poly("main", -0.26, 0.96, -0.13, 0.8, 0, 1, 0.13, 0.8, 0.26, 0.96, 0.2, 0.58, 0, 0.5, -0.2, 0.58),
         _poly("lit", -0.07, 0.56, 0, 0.98, 0.07, 0.56)),
    ),
    "ball": (
        (_disc("main", 0, 0.5, 0.5),
         *(_sector("other", 0, 0.5, 0.5, 0.5, a, a + 60) for a in (0, 120, 240)),
         _disc("white", 0, 0.5, 0.1)),
        (_disc("white", 0, 0.5, 0.5), _disc("ink", 0, 0.5, 0.17), *_wreath(("ink",) * 5, 0.5, 0.36, 0.11)),
        (_disc("main", 0, 0.5, 0.5), _stroke("other", 0.16, -0.47, 0.38, 0, 0.5, 0.47, 0.62),
         _disc("lit", -0.18, 0.74, 0.1)),
    ),
    "chair": (
        (*_legs("dim", 0.07, 0.45, -0.22, 0.2), *_legs("main", 0.08, 0.45, -0.3, 0.3),
         _box("main", -0.34, 0.42, 0.34, 0.54), _box("main", -0.34, 0.5, -0.24, 1),
         _box("dim", 0.2, 0.5, 0.28, 0.96), *(_box("main", -0.3, y, 0.26, y + 0.1) for y in (0.68, 0.86))),
    ),
}
# fmt: on
