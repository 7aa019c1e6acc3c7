import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Labels = NDArray[np.uint8]

DEFAULT_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    folder = Path(os.environ.get("COCU_DATA", DEFAULT_DATA))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set COCU_DATA")
    return folder


@pytest.fixture
def labels() -> Labels:
    labels_HW = np.zeros((6, 8), np.uint8)
    labels_HW[:, 4:] = 1
    labels_HW[5] = 255
    return labels_HW


@pytest.fixture
def save() -> Callable[..., None]:
    """Writes an array as a picture, making its folder."""

    def write(path: Path, pixels: Labels, mode: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels)
        if mode == "P":
            picture.putpalette(list(range(256)) * 3)
        picture.save(path)

    return write


@pytest.fixture
def save_tar() -> Callable[..., Path]:
    """Writes a tar of named bytes."""

    def write(path: Path, files: list[tuple[str, bytes]]) -> Path:
        with tarfile.open(path, "w") as archive:
            for name, content in files:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Bytes of an array as a picture of some format."""

    def encode(pixels: Labels, kind: str) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, kind)
        return sink.getvalue()

    return encode
