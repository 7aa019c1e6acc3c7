"""The built-in corpus: small rendered scenes with captions and exact masks.

A scene is a few bands of stuff (sky over sea over sand, a wall over a floor) with things standing in them
where they usually stand, and now and then where they do not. Its caption says little, as captions do.
Everything in a scene follows from its seed and its index; nothing is read or written.
"""

import functools
import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from curation.scene_paint import TEXTURES, Canvas, band_edges, choose, draw_shadow, draw_thing, paint_stuff
from curation.scene_shapes import SHAPES

STUFF: tuple[str, ...] = tuple(TEXTURES)
THINGS: tuple[str, ...] = tuple(SHAPES)
CONCEPTS: tuple[str, ...] = STUFF + THINGS
"""Every concept a scene can show; a concept's position is its label in the masks."""
_LABELS = {name: label for label, name in enumerate(CONCEPTS)}
_IRREGULAR = {"grass": "grasses", "person": "people", "sheep": "sheep", "sky": "skies", "bus": "buses"}
PLURALS: dict[str, str] = {name: _IRREGULAR.get(name, name + "s") for name in CONCEPTS}

CaptionStyle = Literal["salient", "random"]


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are rendered."""

    size: int = 64  # pixels per side of the finished image
    oversample: int = 2  # scenes are drawn this many times larger and reduced
    noise: float = 4.0  # standard deviation of the pixel noise, grey levels of 255
    min_share: float = 0.01  # share of the pixels from which a concept counts as present

    def __post_init__(self) -> None:
        if self.size < 16 or self.oversample < 1:
            raise ValueError(f"{self}: size must be at least 16 pixels and oversample at least 1")


@dataclass(frozen=True)
class Scene:
    """One picture with its caption and the truth about it.

    Attributes:
        image_HWC: uint8, RGB.
        mask_HW: uint8, the position of each pixel's concept in CONCEPTS.
        concepts: those that cover at least `min_share` of the pixels, largest first.
        caption: English, lower case, without a full stop.
    """

    image_HWC: NDArray[np.uint8]
    mask_HW: NDArray[np.uint8]
    concepts: tuple[str, ...]
    caption: str


# Bands from top to bottom, and how often; the first band reaches up to the top edge.
_SETTINGS: dict[str, float] = {
    "sky": 3, "sky sea": 6, "sky sea sand": 12, "sky sea grass": 3, "sky mountain sea": 4,
    "sky mountain sea sand": 4, "sky grass": 8, "sky mountain grass": 6, "sky field": 7, "sky field grass": 5,
    "sky mountain field": 4, "sky grass road": 9, "sky field road": 3, "sky mountain road": 3, "sky snow": 5,
    "sky mountain snow": 5, "sky snow road": 3, "wall road": 7, "wall grass": 3, "wall floor": 15,
}  # fmt: skip
# What stands in which band, and how often.
_HABITATS: dict[str, dict[str, float]] = {
    "sky": {"bird": 5, "plane": 5, "kite": 4},
    "sea": {"boat": 12, "bird": 2, "ball": 1, "person": 1},
    "sand": {"umbrella": 6, "person": 4, "ball": 4, "chair": 3, "dog": 2, "tree": 2, "bird": 2, "boat": 1},
    "grass": {"tree": 4, "sheep": 4, "flower": 4, "dog": 3, "house": 3, "ball": 2, "bicycle": 2, "person": 2},
    "field": {"sheep": 4, "tree": 4, "flower": 3, "house": 3, "bird": 3, "person": 2, "dog": 1},
    "road": {"car": 7, "bus": 6, "bicycle": 5, "person": 3, "dog": 1, "cat": 1, "umbrella": 1},
    "snow": {"tree": 4, "house": 4, "person": 3, "dog": 2, "car": 2, "bird": 1},
    "floor": {"chair": 6, "cat": 6, "ball": 3, "dog": 3, "person": 3, "flower": 3, "umbrella": 3},
}
_STRAY = 0.2  # share of things that stand where any thing may
_SKY_ROOM = 0.3  # things look for room on the ground first
_AIRBORNE = ("bird", "plane", "kite")
_GROUNDED = tuple(thing for thing in THINGS if thing not in ("sun", "plane", "kite"))
_GROUPS = ("bird", "boat", "flower", "sheep", "tree", "person", "ball", "kite", "car", "chair")
# Height at middle distance, as a fraction of the picture.
_HEIGHTS: dict[str, float] = {
    "tree": 0.48, "house": 0.4, "car": 0.28, "bus": 0.32, "bicycle": 0.32, "boat": 0.36, "plane": 0.22,
    "bird": 0.22, "sun": 0.28, "kite": 0.38, "umbrella": 0.46, "person": 0.45, "dog": 0.35, "cat": 0.4,
    "sheep": 0.3, "flower": 0.4, "ball": 0.24, "chair": 0.42,
}  # fmt: skip


class _Placement(NamedTuple):
    thing: str
    feet: tuple[float, float]
    height: float
    airborne: bool


def _stream(seed: int, index: int, purpose: str) -> Generator:
    """A generator of its own for every seed, index and purpose."""
    digest = hashlib.blake2b(f"{seed}/{index}/{purpose}".encode(), digest_size=16).digest()
    return Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))


def _spot(rng: Generator, zone_HW: NDArray[np.bool_], taken: list[_Placement]) -> tuple[float, float] | None:
    """Of a few points in the zone, the one farthest from what is placed already; None if they all miss."""
    side = zone_HW.shape[0]
    points_N2 = rng.uniform(0.06, 0.97, (16, 2))
    columns_N2 = (points_N2 * side).astype(np.intp)
    inside = points_N2[zone_HW[columns_N2[:, 1], columns_N2[:, 0]]][:4]
    if not len(inside):
        return None
    clearance = [min((abs(x - p.feet[0]) + abs(y - p.feet[1]) for p in taken), default=0) for x, y in inside]
    x, y = inside[int(np.argmax(clearance))]
    return float(x), float(y)


def _lodging(rng: Generator, rooms: dict[str, float], taken: set[str]) -> tuple[str, str]:
    """A band, and a thing that stands in it, preferably of a kind not there yet."""
    band = choose(rng, rooms)
    if rng.random() < _STRAY:
        strays = _AIRBORNE if band == "sky" else _GROUNDED
        return band, strays[int(rng.integers(len(strays)))]
    fresh = {thing: weight for thing, weight in _HABITATS[band].items() if thing not in taken}
    return band, choose(rng, fresh or _HABITATS[band])


def _place(rng: Generator, bands: list[str], owner_HW: NDArray[np.uint8]) -> list[_Placement]:
    """Things for the bands as painted, farthest first."""
    pixels = np.bincount(owner_HW[::4, ::4].ravel(), minlength=len(bands))
    rooms = {band: math.sqrt(pixels[k]) for k, band in enumerate(bands) if band in _HABITATS}
    if len(rooms) > 1 and "sky" in rooms:
        rooms["sky"] *= _SKY_ROOM
    placed: list[_Placement] = []
    for _ in range(int(rng.integers(1, 5))):
        band, thing = _lodging(rng, rooms, {placement.thing for placement in placed})
        zone_HW = owner_HW == bands.index(band)
        scale = rng.uniform(0.75, 1.3)
        for _ in range(int(rng.integers(1, 4)) if thing in _GROUPS and rng.random() < 0.4 else 1):
            spot = _spot(rng, zone_HW, placed)
            if spot is not None:
                placed.append(_stand(thing, spot, scale * rng.uniform(0.9, 1.1), band == "sky"))
    return sorted(placed, key=lambda placement: (not placement.airborne, placement.feet[1]))


def _stand(thing: str, spot: tuple[float, float], scale: float, airborne: bool) -> _Placement:
    """What stands lower in the picture is nearer, hence larger; what flies is centred on its spot."""
    x, y = spot
    height = _HEIGHTS[thing] * scale * (1 if airborne else 0.4 + 0.8 * y)
    return _Placement(thing, (x, y + height / 2 if airborne else y), height, airborne)


def _paint(rng: Generator, side: int) -> tuple[Canvas, list[str]]:
    """Paints a scene and says what each owner number on the canvas is."""
    canvas = Canvas(np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8))
    bands = choose(rng, _SETTINGS).split()
    names = list(bands)
    edges = band_edges(rng, bands, side)
    lowest = [*(float(edge_W.max()) for edge_W in edges[1:]), 1.0]
    for number, band in enumerate(bands):
        paint_stuff(rng, canvas, band, number, edges[number], lowest[number])
        if band == "sky" and rng.random() < 0.28:
            names.append("sun")
            centre = (rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.5))
            draw_thing(rng, canvas, "sun", len(bands), centre, _HEIGHTS["sun"] * rng.uniform(0.8, 1.4))
    for placement in _place(rng, bands, canvas.owner_HW):
        names.append(placement.thing)
        if not placement.airborne:
            draw_shadow(canvas, placement.feet, placement.height * 0.4)
        draw_thing(rng, canvas, placement.thing, len(names) - 1, placement.feet, placement.height)
    return canvas, names


def _expose(rng: Generator, image_HWC: NDArray[np.uint8], config: SceneConfig) -> NDArray[np.uint8]:
    """Reduces the drawing to its final size, under varying light and with the noise of a small sensor."""
    reduced = cv2.resize(image_HWC, (config.size, config.size), interpolation=cv2.INTER_AREA)
    gain = np.float32(rng.uniform(0.78, 1.12) * rng.uniform(0.93, 1.07, 3))
    noise_HW1 = rng.standard_normal((config.size, config.size, 1), dtype=np.float32)
    light = reduced * gain + (noise_HW1 * np.float32(config.noise) + np.float32(rng.uniform(-8, 20)))
    return np.clip(light, 0, 255).astype(np.uint8)


_COUNTED = {2: ("two {}", "two {}", "a pair of {}"), 3: ("three {}", "some {}", "a group of {}")}
_MANY = ("several {}", "many {}", "a lot of {}")
_PLACES: dict[str, str] = {
    "sky": "under the sky", "sea": "by the sea", "grass": "on the grass", "field": "in a field",
    "sand": "on the sand", "road": "on the road", "mountain": "near a mountain", "snow": "in the snow",
    "wall": "in front of a wall", "floor": "on the floor",
}  # fmt: skip
_BARE = ("grass", "sand", "snow")  # said without an article
_DEFINITE = ("sun", "sky", "sea")  # there is only one
_FRAMES = (
    "{}", "{}", "{}", "a photo of {}", "a picture of {}", "look at {}", "{} today", "{} in summer",
    "my favourite shot of {}", "{} seen this morning", "a view of {}", "{} on our holiday",
)  # fmt: skip
_LINKS = ("{} and {}", "{} with {}", "{} next to {}", "{} near {}", "{} beside {}")


def _one_of(rng: Generator, forms: tuple[str, ...]) -> str:
    return forms[int(rng.integers(len(forms)))]


def _phrase(rng: Generator, name: str, count: int) -> str:
    """A noun phrase: "an umbrella", "two dogs", "the sun", "grass"."""
    if count > 1:
        return _one_of(rng, _COUNTED.get(count, _MANY)).format(PLURALS[name])
    if name in _BARE:
        return name
    if name in _DEFINITE or rng.random() < 0.15:
        return f"the {name}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _salient_caption(rng: Generator, salience: dict[str, float], counts: Counter[str]) -> str:
    """One or two large, central things; now and then the stuff they stand on."""
    things = {name: salience[name] ** 1.5 for name in salience if name in THINGS}
    stuff = {name: salience[name] for name in salience if name in STUFF}
    if not things:
        return _one_of(rng, _FRAMES).format(_phrase(rng, choose(rng, stuff), 1))
    first = choose(rng, things)
    said = _phrase(rng, first, counts[first])
    del things[first]
    if things and rng.random() < 0.45:
        second = choose(rng, things)
        said = _one_of(rng, _LINKS).format(said, _phrase(rng, second, counts[second]))
    if stuff and rng.random() < 0.18:
        said = f"{said} {_PLACES[choose(rng, stuff)]}"
    return _one_of(rng, _FRAMES).format(said)


def _random_caption(rng: Generator, salience: dict[str, float], counts: Counter[str]) -> str:
    """Half to all of what is there, stuff included, in any order."""
    count = int(rng.integers((len(salience) + 1) // 2, len(salience) + 1))
    names = [list(salience)[k] for k in rng.permutation(len(salience))[:count]]
    *most, last = [_phrase(rng, name, counts[name] if name in THINGS else 1) for name in names]
    return _one_of(rng, _FRAMES).format(f"{', '.join(most)} and {last}" if most else last)


@functools.cache
def _centrality(side: int) -> NDArray[np.float64]:
    """Flat weights of the pixels: 1 in the middle, falling to a quarter in the corners."""
    offset = np.linspace(-1, 1, side)
    return np.asarray(1 - 0.375 * (offset[:, None] ** 2 + offset[None] ** 2)).ravel()


def render_scene(config: SceneConfig, seed: int, index: int, captions: CaptionStyle) -> Scene:
    """Renders one scene of the corpus with the given seed.

    The picture does not depend on the caption style: the two have random streams of their own.

    Args:
        config: size, oversampling, noise, and what counts as present.
        seed: names the corpus.
        index: names the scene in it.
        captions: "salient" names one or two conspicuous things, as captions on the web do; "random" names
            half to all of the concepts present, as many captions of one picture would together.

    Returns:
        The scene: picture, mask, concepts present, caption.

    Raises:
        ValueError: for another caption style.
    """
    if captions not in ("salient", "random"):
        raise ValueError(f'captions={captions!r}: allowed are "salient" and "random"')
    rng = _stream(seed, index, "picture")
    canvas, names = _paint(rng, config.size * config.oversample)
    image_HWC = _expose(rng, canvas.image_HWC, config)
    middles = slice(config.oversample // 2, None, config.oversample)
    owner_HW = canvas.owner_HW[middles, middles]
    mask_HW = np.array([_LABELS[name] for name in names], dtype=np.uint8)[owner_HW]
    salience = _salience(mask_HW, config.min_share)
    visible = np.bincount(owner_HW.ravel(), minlength=len(names)) >= config.min_share / 3 * owner_HW.size
    counts = Counter(name for name, shows in zip(names, visible.tolist(), strict=True) if shows)
    tell = _salient_caption if captions == "salient" else _random_caption
    caption = tell(_stream(seed, index, captions), salience, counts)
    return Scene(image_HWC, mask_HW, tuple(salience), caption)


def _salience(mask_HW: NDArray[np.uint8], min_share: float) -> dict[str, float]:
    """How conspicuous each concept present is: its pixels, central ones counting most; largest first."""
    labels = mask_HW.ravel().astype(np.intp)
    areas = np.bincount(labels, minlength=len(CONCEPTS))
    weights = np.bincount(labels, _centrality(mask_HW.shape[0]), minlength=len(CONCEPTS))
    order = np.argsort(-areas, kind="stable")
    return {CONCEPTS[k]: float(weights[k]) for k in order[areas[order] >= min_share * labels.size].tolist()}


def encode_jpeg(image_HWC: NDArray[np.uint8]) -> bytes:
    """An RGB uint8 image as a JPEG file of quality 90; the same bytes for the same image."""
    return cv2.imencode(".jpg", image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def encode_mask_png(mask_HW: NDArray[np.uint8]) -> bytes:
    """A uint8 label mask as a grey-scale PNG file, exactly; the same bytes for the same mask."""
    return cv2.imencode(".png", mask_HW)[1].tobytes()
