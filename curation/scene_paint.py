"""How a built-in scene is painted: textures for stuff, a pen for things.

Stuff is told by its texture and things by their shape; colours overlap on purpose, so that no concept can be
named by its colour alone. Random numbers come from the caller's generator and from nowhere else.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from curation.scene_shapes import INK, SHAPES, WHITE, Colour, Shape, any_hue, hsv, mix, tones

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_SUBPIXEL_BITS = 4  # OpenCV's fixed point: sixteenths of a pixel


def choose(rng: Generator, weights: Mapping[str, float]) -> str:
    """Draws one key with probability proportional to its weight."""
    left = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return name


class Canvas(NamedTuple):
    """The picture and, pixel for pixel, the number of what was painted there last."""

    image_HWC: NDArray[np.uint8]
    owner_HW: NDArray[np.uint8]


def draw_thing(
    rng: Generator, canvas: Canvas, thing: str, number: int, feet: tuple[float, float], height: float
) -> None:
    """Draws one `thing` of the given height, standing at `feet` (x, y; fractions of the canvas, y down)."""
    side = canvas.owner_HW.shape[0]
    shape, spans, points_N2 = _outlines(thing)[int(rng.integers(len(SHAPES[thing])))]
    colours = tones(rng, thing, shape)
    frame_22 = _frame(rng) * (height * side * (1 << _SUBPIXEL_BITS))
    origin = (np.array(feet) * side - 0.5) * (1 << _SUBPIXEL_BITS)
    corners_N2 = (points_N2 @ frame_22 + origin).astype(np.int32)
    for (tone, _), span in zip(shape, spans, strict=True):
        outline = [corners_N2[span]]
        cv2.fillPoly(canvas.image_HWC, outline, colours[tone], cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.fillPoly(canvas.owner_HW, outline, number, cv2.LINE_8, _SUBPIXEL_BITS)


@functools.cache
def _outlines(thing: str) -> list[tuple[Shape, list[slice], NDArray[np.float64]]]:
    """Each of a thing's shapes with all its points in one array, and where in it each part's points are."""
    outlines = []
    for shape in SHAPES[thing]:
        ends = np.cumsum([0] + [len(points_N2) for _, points_N2 in shape]).tolist()
        spans = [slice(*pair) for pair in itertools.pairwise(ends)]
        outlines.append((shape, spans, np.concatenate([points_N2 for _, points_N2 in shape])))
    return outlines


def _frame(rng: Generator) -> NDArray[np.float64]:
    """From a shape's frame to the canvas': mirrored half the time, a little stretched and tilted."""
    tilt = rng.normal(0, 0.06)
    width = rng.uniform(0.85, 1.15) * (1 if rng.random() < 0.5 else -1)
    cos, sin = math.cos(tilt), math.sin(tilt)
    return np.array([[width * cos, width * sin], [sin, -cos]])


def draw_shadow(canvas: Canvas, feet: tuple[float, float], reach: float) -> None:
    """Darkens the ground under a thing; the ground remains the owner of its pixels."""
    side = canvas.owner_HW.shape[0]
    x, y = round(feet[0] * side), round(feet[1] * side)
    if not (0 <= x < side and 0 <= y < side):
        return
    red, green, blue = (round(0.68 * int(value)) for value in canvas.image_HWC[y, x])
    axes = (max(1, round(reach * side)), max(1, round(0.18 * reach * side)))
    cv2.ellipse(canvas.image_HWC, (x, y), axes, 0, 0, 360, (red, green, blue), cv2.FILLED, cv2.LINE_AA)


def _clouds(rng: Generator, shape: tuple[int, int], cells: tuple[int, int]) -> Floats:
    """Smooth noise in [0, 1] with so many cells down and across."""
    rows, columns = shape
    coarse = rng.random(cells, dtype=np.float32)
    smooth = cv2.resize(coarse, (columns // 4, rows // 4 + 1), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(smooth, (columns, rows), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _blend(share_HW: Floats, near: Colour, far: Colour) -> Bytes:
    """`near` where the share is 0, `far` where it is 1."""
    share = np.clip(share_HW, 0, 1)
    layers = [
        cv2.convertScaleAbs(share, alpha=stop - start, beta=start)
        for start, stop in zip(near, far, strict=True)
    ]
    return np.asarray(cv2.merge(layers), dtype=np.uint8)


def _ramp(depth_HW: Floats, reach: float) -> Floats:
    return depth_HW / np.float32(reach)


def _grain(rng: Generator, shape: tuple[int, ...], strength: float) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(strength)


def _across(depth_HW: Floats, origin: float) -> Floats:
    """One row of distances to the right of an origin, fractions of the width."""
    side = depth_HW.shape[1]
    return np.linspace(-origin, 1 - origin, side, dtype=np.float32)[None]


def _dashes(rng: Generator, image: Bytes, colour: Colour, count: int, dx: float, dy: float) -> None:
    """Strokes of about (dx, dy), in fractions of the width, anywhere; `count` would fill a square picture."""
    rows, side = image.shape[:2]
    number = max(1, count * rows // side)
    start_N2 = rng.random((number, 2)) * (side, rows)
    step_N2 = (
        np.array([dx, dy]) * rng.uniform(0.5, 1.3, (number, 2)) + rng.normal(0, 0.004, (number, 2))
    ) * side
    strokes = np.stack([start_N2, start_N2 + step_N2], axis=1).astype(np.int32)
    cv2.polylines(image, list(strokes), False, colour, max(1, side // 128))


def _sky(rng: Generator, depth_HW: Floats) -> Bytes:
    zenith = hsv(rng.choice([0.58, 0.6, 0.63, 0.95, 0.08]), rng.uniform(0.1, 0.7), rng.uniform(0.55, 1))
    haze = mix(zenith, (255, 246, 232), rng.uniform(0.3, 0.8))
    image = _blend(_ramp(depth_HW, 0.6), zenith, haze)
    cover = _clouds(rng, depth_HW.shape, (5, 4)) * np.float32(2.2) - np.float32(rng.uniform(1.0, 2.2))
    white_HW = np.clip(cover, 0, np.float32(0.8))
    return np.asarray(
        cv2.blendLinear(image, np.full_like(image, 250), 1 - white_HW, white_HW), dtype=np.uint8
    )


def _sea(rng: Generator, depth_HW: Floats) -> Bytes:
    deep = hsv(rng.uniform(0.45, 0.63), rng.uniform(0.35, 0.9), rng.uniform(0.3, 0.75))
    image = _blend(_ramp(depth_HW, 0.6), mix(deep, WHITE, rng.uniform(0.1, 0.4)), deep)
    _dashes(rng, image, mix(deep, WHITE, 0.55), int(rng.integers(130, 260)), 0.09, 0)
    _dashes(rng, image, mix(deep, INK, 0.35), 100, 0.08, 0)
    return image


def _grass(rng: Generator, depth_HW: Floats) -> Bytes:
    green = hsv(rng.uniform(0.17, 0.4), rng.uniform(0.35, 0.85), rng.uniform(0.4, 0.85))
    image = _blend(_clouds(rng, depth_HW.shape, (4, 6)), green, mix(green, INK, 0.25))
    _dashes(rng, image, mix(green, INK, 0.45), 330, 0.008, 0.05)
    _dashes(rng, image, mix(green, (240, 250, 150), 0.45), 330, -0.008, 0.05)
    return image


def _field(rng: Generator, depth_HW: Floats) -> Bytes:
    """Furrows that meet at a point above the horizon."""
    ridge = hsv(rng.uniform(0.04, 0.3), rng.uniform(0.3, 0.75), rng.uniform(0.5, 0.95))
    x_1W = _across(depth_HW, rng.uniform(-0.2, 1.2))
    furrows = np.sin(x_1W / (depth_HW + np.float32(0.22)) * np.float32(rng.uniform(16, 26)))
    return _blend(furrows * np.float32(1.2) + np.float32(0.5), mix(ridge, INK, 0.5), ridge)


def _sand(rng: Generator, depth_HW: Floats) -> Bytes:
    base = hsv(rng.uniform(0.07, 0.14), rng.uniform(0.15, 0.55), rng.uniform(0.7, 1))
    share = _clouds(rng, depth_HW.shape, (5, 3)) * np.float32(0.4) + np.float32(0.25)
    return _blend(share + _grain(rng, depth_HW.shape, 0.4), mix(base, WHITE, 0.3), mix(base, INK, 0.35))


def _road(rng: Generator, depth_HW: Floats) -> Bytes:
    """Asphalt with a kerb, and a broken line along it."""
    grey = hsv(rng.random(), rng.uniform(0, 0.15), rng.uniform(0.25, 0.6))
    share = _ramp(depth_HW, 0.5) + _grain(rng, depth_HW.shape, 0.15)
    image = _blend(share, mix(grey, WHITE, 0.18), grey)
    line, start, dashes = rng.uniform(0.1, 0.2), rng.random(), rng.uniform(3.5, 6)
    dashed_HW = (np.abs(depth_HW - line) < 0.015) & ((_across(depth_HW, start) * dashes) % 1 < 0.6)
    image[dashed_HW | (depth_HW < 0.018)] = WHITE if rng.random() < 0.6 else (245, 200, 60)
    return image


def _mountain(rng: Generator, depth_HW: Floats) -> Bytes:
    """Slopes bright on one side and dark on the other, often with snow on top."""
    rock = hsv(rng.choice([0.07, 0.1, 0.3, 0.6, 0.72]), rng.uniform(0.05, 0.4), rng.uniform(0.35, 0.75))
    warp = _clouds(rng, depth_HW.shape, (9, 14)) - np.float32(0.5)
    slope_W = np.gradient(depth_HW[-1]) * np.float32(depth_HW.shape[1] * rng.choice([-0.8, 0.8]))
    image = _blend(slope_W + warp + np.float32(0.5), mix(rock, INK, 0.5), mix(rock, WHITE, 0.25))
    if rng.random() < 0.6:
        image[depth_HW + warp * 0.12 < rng.uniform(0.04, 0.09)] = (244, 246, 252)
    return image


def _snow(rng: Generator, depth_HW: Floats) -> Bytes:
    """Soft drifts, each with a bluish lee side."""
    white = hsv(rng.uniform(0.5, 0.7), rng.uniform(0, 0.08), rng.uniform(0.9, 1))
    drift = depth_HW * np.float32(rng.uniform(5, 8)) + _clouds(rng, depth_HW.shape, (2, 4))
    share = drift - np.floor(drift)
    return _blend(share * share * share, white, mix(white, (110, 130, 195), rng.uniform(0.4, 0.65)))


def _wall(rng: Generator, depth_HW: Floats) -> Bytes:
    """Bricks, each of its own shade."""
    rows, side = depth_HW.shape
    brick = hsv(rng.uniform(0, 0.12), rng.uniform(0.05, 0.7), rng.uniform(0.45, 0.95))
    tall = side * rng.uniform(0.055, 0.085)
    y, x = np.arange(rows) / tall, np.arange(side) / (tall * rng.uniform(1.9, 2.4))
    course = y.astype(np.intp)
    along = x[None] + (course % 2)[:, None] * 0.5
    column = along.astype(np.intp)
    shades = rng.random((course[-1] + 1, column.max() + 1), dtype=np.float32)
    image = _blend(shades[course[:, None], column], brick, mix(brick, INK, 0.35))
    image[((y - course)[:, None] < 0.2) | (along - column < 0.1)] = mix(brick, WHITE, rng.uniform(0.3, 0.7))
    return image


def _floor(rng: Generator, depth_HW: Floats) -> Bytes:
    """Tiles in two colours, seen in perspective."""
    light = hsv(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.75, 1))
    dark = mix(light, any_hue(rng) if rng.random() < 0.5 else INK, rng.uniform(0.3, 0.6))
    scale_HW = np.float32(rng.uniform(2.2, 3.2)) / (depth_HW + np.float32(0.35))
    tile_HW = np.floor(_across(depth_HW, rng.uniform(0.2, 0.8)) * scale_HW) + np.floor(
        scale_HW * np.float32(0.9)
    )
    return _blend(tile_HW % 2, light, dark)


TEXTURES: dict[str, Callable[[Generator, Floats], Bytes]] = {
    "sky": _sky,
    "sea": _sea,
    "grass": _grass,
    "field": _field,
    "sand": _sand,
    "road": _road,
    "mountain": _mountain,
    "snow": _snow,
    "wall": _wall,
    "floor": _floor,
}
"""From a generator and the depth below the band's upper edge (fractions of the width) to RGB."""


def band_edges(rng: Generator, bands: list[str], side: int) -> list[Floats]:
    """The upper edge of each band, per column; the first is the top of the picture."""
    horizon, step = rng.uniform(0.3, 0.58), rng.uniform(0.4, 0.6)
    edges, level = [np.zeros(side, dtype=np.float32)], horizon
    for band in bands[1:]:
        if band == "mountain":
            edges.append(_ridge(rng, horizon, side))
        else:
            edges.append(_level(rng, level, side, band))
            level += (1 - horizon) * step
    return edges


def _level(rng: Generator, height: float, side: int, band: str) -> Floats:
    """Straight where people or water made it so, rolling elsewhere."""
    x = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    if band in ("sea", "floor", "road"):
        return np.asarray(height + x * rng.normal(0, 0.012), dtype=np.float32)
    wave = np.sin(x * rng.uniform(2, 9) + rng.uniform(0, 6))
    rolling = height + x * rng.normal(0, 0.05) + wave * rng.uniform(0, 0.025)
    return np.asarray(rolling, dtype=np.float32)


def _ridge(rng: Generator, horizon: float, side: int) -> Floats:
    """Peaks and saddles by turns."""
    count = int(rng.integers(4, 9))
    heights = rng.uniform(0.02, 0.1, count) + np.where(np.arange(count) % 2, rng.uniform(0.1, 0.26, count), 0)
    stops = np.linspace(-0.1, 1.1, count) + rng.uniform(-0.05, 0.05, count)
    return np.asarray(horizon - np.interp(np.linspace(0, 1, side), stops, heights), dtype=np.float32)


def paint_stuff(
    rng: Generator, canvas: Canvas, stuff: str, number: int, upper_W: Floats, lowest: float
) -> None:
    """Fills a band with its texture.

    Args:
        rng: the scene's generator.
        canvas: painted in place.
        stuff: a key of TEXTURES.
        number: the owner to note for the band's pixels.
        upper_W: height of the band's upper edge per column; fractions of the canvas, y down.
        lowest: height below which the next band hides this one.
    """
    side = canvas.owner_HW.shape[0]
    top, bottom = max(0, math.floor(float(upper_W.min()) * side)), math.ceil(lowest * side)
    y_H = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5)) / np.float32(side)
    depth_HW = y_H[:, None] - upper_W[None]
    band_HW = (depth_HW >= 0).astype(np.uint8)
    texture_HWC = TEXTURES[stuff](rng, np.maximum(depth_HW, 0))
    cv2.copyTo(texture_HWC, band_HW, canvas.image_HWC[top:bottom])
    cv2.copyTo(np.full_like(band_HW, number), band_HW, canvas.owner_HW[top:bottom])
