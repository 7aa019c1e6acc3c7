"""What an image's bytes hold: refused with a reason, or decoded to upright 8-bit RGB."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# The web's formats. Not all that Pillow knows: some are decoded by other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
_MAGIC_AFTER_LENGTH = (b"WEBP", b"avif", b"avis")  # at byte 8
_UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what sets the picture upright
_TURNED = (5, 6, 7, 8)  # the orientations that exchange the sides
_UNSCALED = ("I", "F")  # 32-bit samples: nothing says which value is white
_COARSEST = 8  # JPEG's smallest scale: all data are still read, few pixels computed
_WARNINGS = threading.Lock()


@dataclass(frozen=True)
class Fault:
    """Why something cannot be used: a reason to count by, a detail to read."""

    reason: str
    detail: str


@dataclass(frozen=True)
class ImageLimits:
    """What an image may measure. Beyond 179 million pixels Pillow refuses, whatever the limit."""

    min_side: int = 16  # pixels
    max_pixels: int = 90_000_000  # width x height, judged by the header before anything is decoded


@dataclass(frozen=True)
class ImageFacts:
    """Sides of the upright image in pixels, and its format as Pillow names it ("JPEG", "PNG")."""

    width: int
    height: int
    format: str


class _RefusedError(ValueError):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.fault = Fault(reason, detail)

    def __str__(self) -> str:
        return f"{self.fault.reason}: {self.fault.detail}"


def inspect_image(data: bytes, limits: ImageLimits | None = None) -> ImageFacts | Fault:
    """Judge an image, reading all its data: what is accepted here ``decode_rgb`` decodes.

    Args:
        data: The bytes of a file in one of ``FORMATS``; of an animation the first frame counts.
        limits: Sizes to accept; None: the default ``ImageLimits``.

    Returns:
        Its facts, or a fault: ``not_an_image``, ``image_truncated``, ``image_damaged``,
        ``image_too_small``, ``image_too_large``, ``image_mode_unsupported``.
    """
    try:
        with _refusing(data):
            image = _open(data)
            width, height = image.size
            _check_size(width, height, limits or ImageLimits())
            image.draft(None, (width // _COARSEST, height // _COARSEST))
            turned = _load(image) in _TURNED
    except _RefusedError as error:
        return error.fault
    sides = (height, width) if turned else (width, height)
    return ImageFacts(*sides, format=str(image.format))


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image (the first frame of an animation) to 8-bit RGB, upright by its EXIF tag.

    Transparency is laid on white, the ground most pictures of the web were drawn for; 16-bit grey
    is scaled to 8 bits.

    Raises:
        ValueError: The data hold no such image. The message starts with the reason that
            ``inspect_image`` gives.
    """
    with _refusing(data):
        image = _open(data)
        orientation = _load(image)
        upright = _to_rgb(image)
        upright.info.clear()  # an orientation left here would be applied again by others
        return upright.transpose(_UNTURN[orientation]) if orientation in _UNTURN else upright


def is_upright(data: bytes) -> bool:
    """Whether an image is stored as it is to be seen.

    Raises:
        ValueError: The data hold no image.
    """
    with _refusing(data):
        image = _open(data)
        with _quiet():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1)) not in _UNTURN


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if min(width, height) < limits.min_side:
        detail = f"{width}x{height} pixels; sides of {limits.min_side} are the least"
        raise _RefusedError("image_too_small", detail)
    if width * height > limits.max_pixels:
        detail = f"{width}x{height} pixels; {limits.max_pixels} in all are the most"
        raise _RefusedError("image_too_large", detail)


def _open(data: bytes) -> Image.Image:
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    if image.mode in _UNSCALED:
        raise _RefusedError("image_mode_unsupported", f"32-bit samples (mode {image.mode})")
    return image


def _unidentified(data: bytes) -> _RefusedError:
    if data.startswith(_MAGIC) or data[8:12] in _MAGIC_AFTER_LENGTH:
        detail = f"its {len(data)} bytes begin as an image, but the header breaks off or is damaged"
        return _RefusedError("image_truncated", detail)
    detail = f"{len(data)} bytes beginning {data[:8]!r}; allowed are {', '.join(FORMATS)}"
    return _RefusedError("not_an_image", detail)


def _load(image: Image.Image) -> int:
    """Decode the pixels; returns the EXIF orientation that is still to be undone."""
    image.load()
    with _quiet():
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        grey_HW = np.asarray(image).astype(np.uint32)
        eight_bit_HW = ((grey_HW * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(eight_bit_HW).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises on bad data into a refusal."""
    try:
        yield
    except (_RefusedError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _RefusedError("image_too_large", str(error)) from None
    except Exception as error:
        reason = "image_truncated" if _breaks_off(data, error) else "image_damaged"
        raise _RefusedError(reason, f"{type(error).__name__}: {error}") from error


def _breaks_off(data: bytes, error: Exception) -> bool:
    webp_bytes = int.from_bytes(data[4:8], "little") + 8 if data.startswith(b"RIFF") else 0
    endless_jpeg = data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data
    return webp_bytes > len(data) or endless_jpeg or "truncated" in str(error).lower()


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of odd metadata, and of large images that the limits here judge anyway.

    Warning filters belong to the process: one thread at a time may change them.
    """
    with _WARNINGS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
