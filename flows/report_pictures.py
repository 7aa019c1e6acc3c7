"""Photographs and label maps as images inside the page, and the colours of labels."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curation.images import decode_rgb

IGNORE = 255  # label that counts neither for nor against: transparent
SIDE = 320  # pixels of a photograph's longer side, at most
NAMED_SHARE, NAMED = 0.03, 6  # labels written into a map: from this share of its pixels, at most so many
UInt8Array = NDArray[np.uint8]
Colour = tuple[int, int, int]
BACKGROUND: Colour = (64, 68, 76)


@cache
def palette(count: int = 256) -> tuple[Colour, ...]:
    """Colours as far apart as they can be, each from all before it (in Oklab, Ottosson 2020).

    The first ones are the most different, so few labels are told apart best.
    """
    lab_KC, rgb_KC = _candidates()
    chosen = [int(np.argmin(np.abs(lab_KC - np.array([0.62, -0.08, -0.12])).sum(1)))]  # a blue
    nearest_K = np.full(len(lab_KC), np.inf)
    while len(chosen) < count:
        nearest_K = np.minimum(nearest_K, ((lab_KC - lab_KC[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(nearest_K.argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in rgb_KC[chosen])


def _candidates() -> tuple[NDArray[np.float64], UInt8Array]:
    """Oklab and sRGB of colours that stand out from white and from black."""
    light, chroma, hue = np.meshgrid(
        np.linspace(0.44, 0.86, 9), np.linspace(0.04, 0.16, 5), np.linspace(0, 2 * np.pi, 48, endpoint=False)
    )
    lab_KC = np.stack([light, chroma * np.cos(hue), chroma * np.sin(hue)], -1).reshape(-1, 3)
    linear_KC = _linear_rgb(lab_KC)
    possible_K = ((linear_KC >= 0) & (linear_KC <= 1)).all(1)
    linear_KC = linear_KC[possible_K]
    gamma_KC = np.where(linear_KC <= 0.0031308, 12.92 * linear_KC, 1.055 * linear_KC ** (1 / 2.4) - 0.055)
    return lab_KC[possible_K], np.round(gamma_KC * 255).astype(np.uint8)


def _linear_rgb(lab_KC: NDArray[np.float64]) -> NDArray[np.float64]:
    to_cones = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return np.asarray((lab_KC @ to_cones.T) ** 3 @ to_rgb.T)


def colours(names: Sequence[str]) -> list[Colour]:
    """The colour of each label; background is a dark grey, so that what stands before it shows."""
    grounds = names[0] == "background" if names else False
    bright = palette()[: len(names)]
    return [BACKGROUND, *bright[: len(names) - 1]] if grounds else list(bright)


def css_colours(names: Sequence[str]) -> list[str]:
    """The same for a stylesheet."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours(names)]


@dataclass(frozen=True)
class Photo:
    """An image of the page."""

    uri: str
    width: int
    height: int


def photo(data: bytes) -> Photo:
    """An encoded image, made small and encoded anew: nothing of the original file reaches the page."""
    image = decode_rgb(data)
    image.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=86)
    return Photo(_uri("image/jpeg", sink.getvalue()), image.width, image.height)


@dataclass(frozen=True)
class Note:
    """A label's name inside a map."""

    name: str
    left: float  # percent of the map's width
    top: float  # percent of its height


@dataclass(frozen=True)
class LabelMap:
    """A segmentation, drawn in the labels' colours."""

    title: str
    picture: Photo
    notes: list[Note]
    correct: float | None  # share of the pixels, where the truth is known


def label_map(
    title: str, labels_HW: UInt8Array, names: Sequence[str], truth_HW: UInt8Array | None = None
) -> LabelMap:
    """Draws labels, and writes the names of the largest into them."""
    image = Image.fromarray(labels_HW)
    filled = [*colours(names), *palette()][:256]  # transparency needs an entry of its own
    image.putpalette([channel for colour in filled for channel in colour])
    sink = io.BytesIO()
    image.save(sink, "PNG", transparency=IGNORE, optimize=True)
    height, width = labels_HW.shape
    picture = Photo(_uri("image/png", sink.getvalue()), width, height)
    return LabelMap(title, picture, _notes(labels_HW, names), _correct(labels_HW, truth_HW))


def _notes(labels_HW: UInt8Array, names: Sequence[str]) -> list[Note]:
    share = np.bincount(labels_HW.ravel(), minlength=256) / labels_HW.size
    share[len(names) :] = 0
    largest = [int(label) for label in np.argsort(-share, kind="stable")[:NAMED]]
    return [_note(labels_HW == label, names[label]) for label in largest if share[label] >= NAMED_SHARE]


def _note(region_HW: NDArray[np.bool_], name: str) -> Note:
    """Where the region is deepest; in the middle of such points, where there are several."""
    height, width = region_HW.shape
    depth = cv2.distanceTransform(np.pad(region_HW, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deepest = np.argwhere(depth.max() - depth.T <= 0.5)  # from left to right
    column, row = map(int, deepest[len(deepest) // 2])
    left, top = 100 * (column + 0.5) / width, 100 * (row + 0.5) / height
    reach = min(2.2 * len(name), 50.0)  # half of the name's width, so that it does not leave the map
    return Note(name, min(max(left, reach), 100 - reach), min(max(top, 6.0), 94.0))


def _correct(labels_HW: UInt8Array, truth_HW: UInt8Array | None) -> float | None:
    if truth_HW is None or not (known_HW := truth_HW != IGNORE).any():
        return None
    return float((labels_HW == truth_HW)[known_HW].mean())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
