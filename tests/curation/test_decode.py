"""Fast decoding: against open_clip's own transform, on what it leaves alone, and when it is refused."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from curation.agreement import agreement
from curation.corpus import CorpusConfig
from curation.decode import FastDecoder, exact_decoder, fast_decoder, scaled
from curation.embed import EMBED, EmbedConfig, embed_shard
from curation.encoder import Encoder, load_encoder
from curation.openclip import open_clip
from curation.sources import Source
from storage.errors import InputError
from storage.reader import CorpusReader
from storage.runtime import Runtime
from storage.stage import materialize

LEVEL = 1 / 255 / 0.25  # one of 256 levels after normalising
FAST = EmbedConfig(batch_size=7, decode="fast")


def picture(width: int, height: int) -> Image.Image:
    """Waves that grow finer towards one corner, and an edge: what a shrunk image shows wrong if it can."""
    down_HW, right_HW = np.mgrid[:height, :width] / max(height, width)
    waves_HW = 127 + 90 * np.sin(30 * right_HW**2 + 20 * down_HW)
    image_HWC = np.stack([waves_HW, waves_HW[::-1], 255 * (right_HW > down_HW)], axis=2)
    return Image.fromarray(image_HWC.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoder(encoder: Encoder, **transform: Any) -> FastDecoder:
    """The copy of an encoder's transform, some of it changed."""
    preprocess = {**encoder.preprocess, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.3), **transform}
    built = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**preprocess), is_train=False
    )
    mean, std = preprocess["mean"], preprocess["std"]
    return fast_decoder(replace(encoder, preprocess=preprocess, transform=built, mean=mean, std=std))


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, "cpu")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize(("mode", "size"), [
    ("shortest", 64), ("squash", 64), ("longest", 64), ("shortest", (48, 80)), ("squash", (48, 80)),
    ("longest", (48, 80)),
])  # fmt: skip
def test_fast_decoding_has_the_pixels_of_open_clips_transform(
    encoder: Encoder, mode: str, size: Any, interpolation: str
) -> None:
    fast = decoder(encoder, size=size, resize_mode=mode, interpolation=interpolation, fill_color=90)
    for width, height in ((64, 64), (80, 48), (100, 75), (75, 101), (31, 40), (150, 149), (64, 200)):
        data = encoded(picture(width, height), quality=95)
        got_CHW = fast.plain(data)
        assert got_CHW is not None
        levels_CHW = (got_CHW - fast.exact(data)).abs() / LEVEL
        assert levels_CHW.max() < 2.01  # each of two passes rounds
        assert levels_CHW.mean() < 0.25


@pytest.mark.parametrize("sides", [(1025, 771), (800, 600), (999, 1003), (2000, 1601)])
def test_scaled_decoding_stays_in_register(encoder: Encoder, sides: tuple[int, int]) -> None:
    """Odd sides are rounded up by the decoder; the picture must not be stretched by it."""
    fast, data = decoder(encoder, size=64), encoded(picture(*sides), quality=95)
    difference_CHW = (fast(data) - fast.exact(data)) / LEVEL
    assert scaled(sides[::-1], fast.resized(sides[::-1])) != (0, 0)
    assert difference_CHW.square().mean().sqrt() < 1.5


def test_scale_leaves_three_pixels_for_each_that_is_wanted() -> None:
    assert scaled((671, 671), (224, 224)) == (0, 0)
    assert scaled((1343, 1343), (224, 224)) == (672, 672)
    assert scaled((5376, 9000), (224, 375)) == (672, 1125)
    assert scaled((5376, 2000), (224, 224)) == (2688, 1000)


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(90, 70), "PNG"),
        encoded(picture(90, 70), "WEBP"),
        encoded(picture(90, 70).convert("CMYK")),
        encoded(
            picture(90, 70), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        ),
        encoded(picture(90, 70), xmp=b'<x tiff:Orientation="8"/>'),
    ],
    ids=["png", "webp", "four inks", "exif", "xmp"],
)
def test_what_is_no_plain_jpeg_is_decoded_exactly(encoder: Encoder, data: bytes) -> None:
    fast = decoder(encoder)
    assert fast.plain(data) is None
    assert torch.equal(fast(data), fast.exact(data))


def test_upright_and_grey_jpegs_are_plain(encoder: Encoder) -> None:
    fast = decoder(encoder)
    upright = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x01\0\0\0\0\0\0"
    for data in (encoded(picture(90, 70), exif=upright), encoded(picture(90, 70).convert("L"))):
        got_CHW = fast.plain(data)
        assert got_CHW is not None
        torch.testing.assert_close(got_CHW, fast.exact(data), atol=1.01 * LEVEL, rtol=0)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", encoded(picture(90, 70))[:900], b"GIF89a"])
def test_damaged_image_has_the_reason_of_exact_decoding(encoder: Encoder, data: bytes) -> None:
    fast = fast_decoder(encoder)
    with pytest.raises(ValueError) as expected:
        exact_decoder(encoder)(data)
    with pytest.raises(ValueError) as got:
        fast(data)
    assert str(got.value) == str(expected.value)


def test_transform_without_a_copy_is_refused(encoder: Encoder) -> None:
    odd = replace(encoder, preprocess={**encoder.preprocess, "resize_mode": "tile"})
    with pytest.raises(InputError, match=r"resize_mode 'tile'.*shortest, longest, squash.*\"exact\""):
        fast_decoder(odd)


def test_fast_vectors_do_not_depend_on_the_number_of_threads(encoder: Encoder, curated: Any) -> None:
    reader, before, found = CorpusReader(curated["corpus"]), torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(embed_shard(FAST, encoder, reader, "scenes/00001").tables["embeddings"])
    torch.set_num_threads(before)
    assert found[0].num_rows == 30
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_broken_weights_are_refused_before_anything_is_compared(encoder: Encoder, curated: Any) -> None:
    class Broken(torch.nn.Module):
        def encode_image(self, image_NCHW: torch.Tensor) -> torch.Tensor:
            return torch.full((len(image_NCHW), 4), torch.nan)

    with pytest.raises(InputError, match=r"NaN or infinity on images of 'scenes/0000\d'.*checkpoint"):
        agreement(replace(encoder, model=Broken()), CorpusReader(curated["corpus"]), 16)


def fast_run(curate: Any, curated: Any, scene_corpus: Any, encoder: Path) -> Any:
    return curate(curated.plan.store.url, scene_corpus, encoder, until="embed", embed=FAST)


def test_fast_embeddings_are_near_exact_ones_and_the_manifest_says_how_near(
    curate: Any, curated: Any, scene_corpus: Any, tiny_encoder: Path
) -> None:
    fast, exact = fast_run(curate, curated, scene_corpus, tiny_encoder)["embed"], curated["embed"]
    assert fast != exact
    vectors = [np.array(run.read("embeddings")["vector"].to_pylist(), np.float64) for run in (fast, exact)]
    cosine_N: NDArray[np.float64] = (vectors[0] * vectors[1]).sum(axis=1)
    facts = fast.manifest.facts
    assert cosine_N.mean() > 0.999
    assert facts["decode_sampled"] == 48
    assert facts["decode_cosine_min"] <= facts["decode_cosine_p5"] <= facts["decode_cosine_mean"]
    assert facts["decode_cosine_min"] >= cosine_N.min() - 1e-3
    assert fast.manifest.counts == exact.manifest.counts
    assert fast.shards == exact.shards


class Contrary:
    """A transform that gives negatives, which the copy cannot know."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return -self.encoder.transform(image)


def test_fast_decoding_that_changes_vectors_is_refused_with_the_remedy(
    encoder: Encoder, curated: Any
) -> None:
    other = replace(encoder, transform=Contrary(encoder))
    with pytest.raises(
        InputError, match=r"mean cosine to exact ones is -?0\.\d+.*48 images.*0\.999.*\"exact\""
    ):
        agreement(other, CorpusReader(curated["corpus"]), 16)


def test_refused_fast_decoding_embeds_nothing(
    curated: Any, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    contrary = replace(encoder, transform=Contrary(encoder))
    monkeypatch.setattr("curation.embed.load_encoder", lambda *_: contrary)
    node = next(node for node in curated.plan.nodes if node.label == "embed")
    config = replace(FAST, batch_size=9)
    with pytest.raises(InputError, match=r"cosine to exact ones"):
        materialize(EMBED, config, node.inputs, curated.plan.store, Runtime(device="cpu"))
    artifact = EMBED.artifact(curated.plan.store, config, node.inputs)
    assert not artifact.folder.exists("")


def test_sample_without_plain_jpegs_has_no_cosine(
    curate: Any,
    write_pairs: Any,
    scene_jpegs: list[bytes],
    encoder: Encoder,
    tiny_encoder: Path,
    tmp_path: Path,
) -> None:
    pngs = [(encoded(Image.open(io.BytesIO(data)), "PNG"), "a dog") for data in scene_jpegs[:3]]
    corpus = write_pairs(tmp_path / "tars", pngs)
    run = curate(tmp_path / "store", corpus, tiny_encoder, until="embed", embed=FAST)
    assert run["embed"].manifest.facts == {"decode_sampled": 0.0}
    assert run["embed"].manifest.counts.kept == 3


def test_fast_shards_are_taken_over_when_a_corpus_grows(
    curate: Any, scene_tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    tars = shutil.copytree(scene_tars, tmp_path / "tars")
    corpus = CorpusConfig((Source("mine", urls=(f"{tars}/*.tar",)),))
    (tars / "00003.tar").rename(tmp_path / "00003.tar")
    before = curate(tmp_path / "store", corpus, tiny_encoder, until="embed", embed=FAST)["embed"].manifest
    (tmp_path / "00003.tar").rename(tars / "00003.tar")
    grown = curate(tmp_path / "store", corpus, tiny_encoder, until="embed", embed=FAST)["embed"].manifest
    rebuilt = curate(tmp_path / "other", corpus, tiny_encoder, until="embed", embed=FAST)["embed"].manifest
    assert (grown.parts, grown.counts, grown.facts) == (rebuilt.parts, rebuilt.counts, rebuilt.facts)
    assert {**grown.shard_timings, **before.shard_timings} == grown.shard_timings  # as they were told then
    assert len(grown.shard_timings) == len(before.shard_timings) + 1
