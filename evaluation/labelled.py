"""One picture with its true labels, read when it is needed and refused with a reason when it cannot be."""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from storage.errors import InputError

IGNORE = 255  # label of pixels that count neither for nor against

UInt8Array = NDArray[np.uint8]


class RejectedImage(InputError):
    """A picture that cannot be measured. An evaluation counts it by its reason and goes on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.detail} ({self.reason})"


@dataclass(frozen=True)
class Rejection:
    """Which picture was left out, and why."""

    image_id: str
    reason: str  # image_missing, image_unreadable, mask_missing, mask_unreadable, mask_size, mask_label
    detail: str


@dataclass(frozen=True)
class Blob:
    """Bytes of a file, or of a member inside an uncompressed tar."""

    path: Path
    member: str = ""
    offset: int = 0
    size: int = -1  # bytes; -1: to the end of the file

    def __str__(self) -> str:
        return f"{self.path}[{self.member}]" if self.member else str(self.path)

    def read(self) -> bytes:
        """The bytes themselves."""
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


@dataclass(frozen=True)
class LabelledImage:
    """Where a picture and its true labels lie."""

    image_id: str
    image: Blob
    mask: Blob | None
    train_ids: tuple[int, ...] | None = None  # label of each of the mask's 256 values; None: itself

    def load_image(self) -> UInt8Array:
        """Pixels, uint8 [H, W, 3] RGB, oriented as stored (which is how masks are drawn).

        Raises:
            RejectedImage: ``image_missing`` or ``image_unreadable``.
        """
        return np.asarray(_open(self.image, "image").convert("RGB"))

    def load_mask(self) -> UInt8Array:
        """True labels, uint8 [H, W]; 255 is to be ignored, 0 is background where there is one.

        Raises:
            RejectedImage: ``mask_missing`` or ``mask_unreadable``.
        """
        if self.mask is None:
            raise RejectedImage("mask_missing", f"{self.image} has no mask beside it; add its .png")
        picture = _open(self.mask, "mask")
        if picture.mode not in ("P", "L"):
            raise RejectedImage(
                "mask_unreadable",
                f"{self.mask} has mode {picture.mode}; masks hold one label per pixel in an 8-bit "
                "palette or grey image",
            )
        label_HW = np.asarray(picture)
        return label_HW if self.train_ids is None else np.array(self.train_ids, np.uint8)[label_HW]


def _open(blob: Blob, kind: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(blob.read()))
        picture.load()
    except FileNotFoundError as error:
        raise RejectedImage(f"{kind}_missing", f"{blob} is not there; restore the file") from error
    except UnidentifiedImageError as error:  # its own message holds a memory address
        detail = f"{blob} is no picture; fetch the file again"
        raise RejectedImage(f"{kind}_unreadable", detail) from error
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        detail = f"{blob} cannot be decoded: {error}; fetch the file again"
        raise RejectedImage(f"{kind}_unreadable", detail) from error
    return picture
