"""From an image's bytes to the pixels an encoder takes: by its own transform, or by a faster copy of it.

The fast copy decodes plain JPEGs with libjpeg-turbo, scaled in the DCT domain where the image is much larger
than what is wanted, and resizes with torch, which weighs pixels as Pillow does and shrinks without aliases.
(OpenCV's cubic weighs as few pixels when it shrinks as when it enlarges: docs/performance.md.)
Whatever else an image may be goes the encoder's own way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import simplejpeg
import torch
from torch import Tensor, nn

from curation.encoder import Encoder
from curation.images import decode_rgb, is_upright
from storage.errors import InputError

Decode = Literal["exact", "fast"]
Decoder = Callable[[bytes], Tensor]  # [3, H, W], or ValueError with the reason why there is none
Sides = tuple[int, int]  # height, width

SCALES = (8, 4, 2)  # libjpeg-turbo's quick ones; the eighths between them cost more than whole pixels
MARGIN = 3  # a scaled image keeps as many pixels a side for each that is wanted: docs/performance.md
IMITATED = {
    "mode": ("RGB",),
    "resize_mode": ("shortest", "longest", "squash"),
    "interpolation": ("bicubic", "bilinear", "random"),  # open_clip evaluates "random" as bicubic
}
RESIZERS = {  # what torch's interpolate calls, with antialiasing
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,  # noqa: SLF001
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,  # noqa: SLF001
}
_TURNS = (b"Exif\0\0", b"tiff:Orientation")  # without either, nothing says that a picture lies on its side


def exact_decoder(encoder: Encoder) -> Decoder:
    """The encoder's own transform of what Pillow decodes."""
    return lambda data: encoder.transform(decode_rgb(data))


@dataclass(frozen=True)
class FastDecoder:
    """A copy of open_clip's evaluation transform for plain JPEGs; ``exact`` for everything else."""

    exact: Decoder
    size: Sides
    resize_mode: str
    interpolation: str
    fill: float
    mean_C11: Tensor  # of pixels in 0 … 255
    scale_C11: Tensor

    def __call__(self, data: bytes) -> Tensor:
        """Pixels [3, H, W] as the encoder wants them, float32.

        Raises:
            ValueError: for an image that cannot be decoded, with the reason.
        """
        fast_CHW = self.plain(data)
        return self.exact(data) if fast_CHW is None else fast_CHW

    def plain(self, data: bytes) -> Tensor | None:
        """The same for a plain JPEG; None for anything else (turned, four inks, damaged, not a JPEG)."""
        if not data.startswith(b"\xff\xd8\xff"):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ("YCbCr", "Gray", "RGB") or (
                any(t in data for t in _TURNS) and not is_upright(data)
            ):
                return None
            wanted = self.resized((height, width))
            least = scaled((height, width), wanted)
            rgb_HWC = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
        except ValueError:
            return None
        image_CHW = torch.from_numpy(rgb_HWC).permute(2, 0, 1)
        if wanted != (height, width):
            image_CHW = self._resize(image_CHW, (height, width), wanted)
        image_CHW = centred(image_CHW, self.size, self.fill) if wanted != self.size else image_CHW
        return image_CHW.contiguous().float().sub_(self.mean_C11).mul_(self.scale_C11)

    def resized(self, sides: Sides) -> Sides:
        """Sides after resizing and before cropping, rounded as torchvision and open_clip do."""
        if self.resize_mode == "squash":
            return self.size
        ratios = [have / want for have, want in zip(sides, self.size, strict=True)]
        if self.resize_mode == "longest" or self.size[0] != self.size[1]:
            ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
            return round(sides[0] / ratio), round(sides[1] / ratio)
        long = int(self.size[0] * max(sides) / min(sides))
        return (long, self.size[0]) if sides[0] > sides[1] else (self.size[0], long)

    def _resize(self, image_CHW: Tensor, sides: Sides, wanted: Sides) -> Tensor:
        """As ``interpolate``, but told the true scale: half of an odd side ends in half a pixel."""
        shrunk = -(-sides[0] // image_CHW.shape[1])
        ratios = [shrunk * want / have for want, have in zip(wanted, sides, strict=True)]
        resize = RESIZERS[self.interpolation]
        return cast("Tensor", resize(image_CHW[None], list(wanted), False, *ratios))[0]


def fast_decoder(encoder: Encoder) -> FastDecoder:
    """The fast copy of an encoder's transform.

    Raises:
        InputError: for a transform of which there is no copy.
    """
    told = encoder.preprocess
    _refuse_unknown(told)
    side, mode = told["size"], told["resize_mode"]
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    oblong = mode == "shortest" and size[0] != size[1]  # then open_clip forgets the interpolation
    bilinear = told["interpolation"] == "bilinear" and not oblong
    return FastDecoder(
        exact=exact_decoder(encoder),
        size=size,
        resize_mode=mode,
        interpolation="bilinear" if bilinear else "bicubic",
        fill=told["fill_color"],
        mean_C11=255 * torch.tensor(encoder.mean)[:, None, None],
        scale_C11=1 / (255 * torch.tensor(encoder.std)[:, None, None]),
    )


def _refuse_unknown(preprocess: Mapping[str, Any]) -> None:
    for key, known in IMITATED.items():
        if preprocess[key] not in known:
            raise InputError(
                f"embed.decode = \"fast\" has no copy of a transform with {key} '{preprocess[key]}', only of "
                f'{", ".join(known)}; set embed.decode = "exact"'
            )


def scaled(sides: Sides, resized: Sides) -> Sides:
    """Sides of the smallest of the quick scales that leaves enough pixels; (0, 0): all of them."""
    for scale in SCALES:
        height, width = -(-sides[0] // scale), -(-sides[1] // scale)
        if height >= MARGIN * resized[0] and width >= MARGIN * resized[1]:
            return height, width
    return 0, 0


def centred(image_CHW: Tensor, size: Sides, fill: float) -> Tensor:
    """The middle of an image, with borders of ``fill`` where it is smaller; rounded as torchvision does."""
    height, width = image_CHW.shape[1:]
    down, right = max(size[0] - height, 0), max(size[1] - width, 0)
    if down or right:
        borders = (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2)
        image_CHW = nn.functional.pad(image_CHW, borders, value=fill)
    top, left = (round((have - want) / 2) for have, want in zip(image_CHW.shape[1:], size, strict=True))
    return image_CHW[:, top : top + size[0], left : left + size[1]]
