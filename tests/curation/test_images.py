import io
import pickle
import struct
import threading
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps

from curation.images import Fault, ImageFacts, ImageLimits, decode_rgb, inspect_image

FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("AVIF", {}),
]
ORIENTED = {"JPEG": {"quality": 95}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Four flat corners, so that every turn and flip looks different."""
    pixels_HWC = np.zeros((height, width, 3), dtype=np.uint8)
    pixels_HWC[: height // 2, : width // 2] = (240, 10, 10)
    pixels_HWC[: height // 2, width // 2 :] = (10, 240, 10)
    pixels_HWC[height // 2 :, : width // 2] = (10, 10, 240)
    return Image.fromarray(pixels_HWC)


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + rows


def reason(data: bytes, limits: ImageLimits | None = None) -> str:
    judged = inspect_image(data, limits)
    return judged.reason if isinstance(judged, Fault) else "accepted"


def decoding(data: bytes) -> str:
    try:
        decode_rgb(data)
    except ValueError as error:
        return str(error).split(":", 1)[0]
    return "accepted"


def colour(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(("format_", "options"), FORMATS)
def test_inspect_image_of_each_format_tells_size_and_format(format_: str, options: dict[str, Any]) -> None:
    data = encoded(picture(48, 32), format_, **options)
    assert inspect_image(data) == ImageFacts(48, 32, format_)
    decoded = decode_rgb(data)
    assert (decoded.mode, decoded.size) == ("RGB", (48, 32))
    np.testing.assert_allclose(colour(decoded, 4, 4), (240, 10, 10), atol=16)


@pytest.mark.parametrize(("format_", "options"), FORMATS)
def test_image_cut_anywhere_is_truncated_or_whole_to_both_functions(
    format_: str, options: dict[str, Any]
) -> None:
    data = encoded(noise(), format_, **options)
    whole = np.asarray(decode_rgb(data))
    for cut in [*range(60, len(data), len(data) // 40), *range(len(data) - 12, len(data))]:
        judged = reason(data[:cut])
        assert judged == decoding(data[:cut])
        assert judged in ("image_truncated", "accepted")
        if judged == "accepted":
            np.testing.assert_array_equal(np.asarray(decode_rgb(data[:cut])), whole)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_image_cut_in_half_is_truncated(format_: str) -> None:
    data = encoded(noise(), format_)
    assert reason(data[: len(data) // 2]) == "image_truncated"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_image_with_flipped_bytes_meets_the_same_end_in_both_functions(format_: str) -> None:
    data, rng = encoded(noise(), format_), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(256)
        generous = ImageLimits(min_side=1, max_pixels=10**12)
        assert reason(bytes(damaged), generous) == decoding(bytes(damaged))


def test_png_with_a_wrong_checksum_is_damaged() -> None:
    data = bytearray(encoded(noise()))
    data[len(data) // 2] ^= 255
    assert reason(bytes(data)) == decoding(bytes(data)) == "image_damaged"


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"<html></html>", b"a caption\n" * 9, bytes(4096), b"%!PS-Adobe-3.0 EPSF"]
)
def test_bytes_of_something_else_are_not_an_image(data: bytes) -> None:
    assert reason(data) == decoding(data) == "not_an_image"


def test_fault_of_something_else_says_what_came_and_what_is_allowed() -> None:
    fault = inspect_image(b"<html></html>")
    assert isinstance(fault, Fault)
    assert "<html>" in fault.detail
    assert "JPEG, PNG, WEBP" in fault.detail


@pytest.mark.parametrize(
    ("size", "judged"), [((1, 1), "image_too_small"), ((15, 900), "image_too_small"), ((16, 16), "accepted")]
)
def test_inspect_image_side_below_the_limit_is_too_small(size: tuple[int, int], judged: str) -> None:
    assert reason(encoded(Image.new("RGB", size))) == judged


def test_inspect_image_more_pixels_than_the_limit_is_too_large() -> None:
    data = encoded(picture(48, 32))
    assert reason(data, ImageLimits(max_pixels=48 * 32)) == "accepted"
    assert reason(data, ImageLimits(max_pixels=48 * 32 - 1)) == "image_too_large"


@pytest.mark.parametrize("side", [9_487, 12_000, 50_000])
def test_decompression_bomb_is_refused_by_its_header_without_a_warning(side: int) -> None:
    bomb = png_header(side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(bomb) == "image_too_large"


def test_bomb_just_below_the_limit_but_above_pillows_does_not_warn() -> None:
    just_below = png_header(9_460, 9_500)  # Pillow warns from 89,478,486 pixels on
    assert reason(just_below) == "image_truncated"


def test_pillows_settings_and_the_warning_filters_stay_as_they_were() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    for data in (encoded(noise()), encoded(noise(), "JPEG")[:900], png_header(50_000, 50_000)):
        inspect_image(data)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def test_corrupt_exif_is_ignored_without_a_warning() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a long description of what is to be seen"
    data = encoded(picture(), "JPEG", exif=exif.tobytes()[:-30])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inspect_image(data) == ImageFacts(48, 32, "JPEG")
        assert decode_rgb(data).size == (48, 32)


def test_images_inspected_in_threads_leave_the_warning_filters_alone() -> None:
    before, data = list(warnings.filters), encoded(noise(), "JPEG")
    threads = [threading.Thread(target=lambda: [inspect_image(data) for _ in range(40)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_", ORIENTED)
def test_image_with_exif_orientation_comes_out_upright(format_: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(picture(), format_, exif=exif, **ORIENTED[format_])
    upright, facts = decode_rgb(data), inspect_image(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(expected))
    assert isinstance(facts, ImageFacts)
    assert (facts.width, facts.height) == upright.size
    assert ImageOps.exif_transpose(upright).tobytes() == upright.tobytes()


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
)
@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_decode_rgb_cmyk_is_converted_not_inverted(
    format_: str, cmyk: tuple[int, ...], rgb: tuple[int, ...]
) -> None:
    data = encoded(Image.new("CMYK", (32, 32), cmyk), format_)
    assert reason(data) == "accepted"
    np.testing.assert_allclose(colour(decode_rgb(data), 9, 9), rgb, atol=4)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_decode_rgb_sixteen_bit_grey_is_scaled(format_: str) -> None:
    ramp_HW = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (16, 1))
    decoded = np.asarray(decode_rgb(encoded(Image.fromarray(ramp_HW), format_)))
    np.testing.assert_array_equal(decoded[0, :, 0], np.arange(256))
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_image_of_32_bit_samples_is_unsupported(mode: str) -> None:
    data = encoded(Image.new(mode, (32, 32)), "TIFF")
    assert reason(data) == decoding(data) == "image_mode_unsupported"


def test_decode_rgb_palette_with_transparency_is_laid_on_white() -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (16, 0, 32, 32))
    decoded = decode_rgb(encoded(image, transparency=0))
    assert (colour(decoded, 0, 0), colour(decoded, 20, 0)) == ((255, 255, 255), (200, 100, 50))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_rgb_half_transparent_black_becomes_grey(mode: str) -> None:
    transparent = (0, 0, 0, 128) if mode == "RGBA" else (0, 128)
    decoded = decode_rgb(encoded(Image.new(mode, (32, 32), transparent)))
    np.testing.assert_allclose(colour(decoded), (127, 127, 127), atol=1)


def test_decode_rgb_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    decoded = decode_rgb(encoded(picture(), transparency=(240, 10, 10)))
    assert (colour(decoded, 0, 0), colour(decoded, 40, 0)) == ((255, 255, 255), (10, 240, 10))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_decode_rgb_fewer_channels_are_spread(mode: str) -> None:
    data = encoded(picture().convert("L").point([255 * (value > 40) for value in range(256)]).convert(mode))
    assert colour(decode_rgb(data), 0, 0) == (255, 255, 255)
    assert colour(decode_rgb(data), 40, 30) == (0, 0, 0)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_decode_rgb_animation_gives_its_first_frame(format_: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour_) for colour_ in ("red", "lime", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=50, **options)
    assert inspect_image(data) == ImageFacts(32, 32, format_)
    assert colour(decode_rgb(data)) == (255, 0, 0)


def test_decode_rgb_bad_data_raises_value_error_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"^image_truncated: ") as raised:
        decode_rgb(encoded(noise(), "JPEG")[:-400])
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301 - from here
