"""Bad input through the real corpus stage, and through everything that reads what it keeps."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import ExifTags, Image

from curation.corpus import CORPUS, CorpusConfig, shard_locations
from curation.images import decode_rgb
from curation.sources import Scenes, Source, scene_tar
from storage.artifact import Artifact, Store
from storage.errors import ConfigError, InputError
from storage.reader import CorpusReader, image_bytes
from storage.runtime import Runtime
from storage.stage import materialize
from storage.tars import Sample, read_tar
from training.data import decode_image
from training.grouping import GroupingConfig
from training.groups import GROUPS, GroupsConfig, read_groups

ON_CPU = Runtime(device="cpu")
CAPTION = b"a dog on the grass beside a tree"
REJECTED = {
    "cut_jpeg": "image_truncated",
    "no_jpeg": "not_an_image",
    "one_pixel": "image_too_small",
    "bomb": "image_too_large",
    "no_image": "image_missing",
    "no_caption": "caption_missing",
    "empty_caption": "caption_empty",
    "blank_caption": "caption_empty",
    "endless_caption": "caption_too_long",
    "latin_caption": "caption_not_utf8",
    "../../etc/evil": "unsafe_name",
    "twice": "duplicate_key",
}
KEPT_ODD = [
    "animated",
    "cmyk",
    "lines",
    "sideways",
    "sixteen_bit",
    "sub/folder/nested",
    "tiff_called_jpg",
    "twice",
]


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(seed: int = 0) -> Image.Image:
    blocks_HWC = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks_HWC, np.ones((8, 8, 1), np.uint8)))


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 2.5 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def odd_members() -> list[tuple[str, dict[str, bytes]]]:
    """Everything the web holds, key by key."""
    jpeg, photo = encoded(picture()), picture()
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    grey_HW = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    turned = [photo.rotate(180)]
    return [
        ("cut_jpeg", {"jpg": jpeg[: len(jpeg) // 2], "txt": CAPTION}),
        ("no_jpeg", {"jpg": b"<html>404</html>", "txt": CAPTION}),
        ("one_pixel", {"png": encoded(Image.new("RGB", (1, 1)), "PNG"), "txt": CAPTION}),
        ("bomb", {"png": bomb(), "txt": CAPTION}),
        ("no_image", {"txt": CAPTION}),
        ("no_caption", {"jpg": jpeg}),
        ("empty_caption", {"jpg": jpeg, "txt": b""}),
        ("blank_caption", {"jpg": jpeg, "txt": b" \n\t\0 "}),
        ("endless_caption", {"jpg": jpeg, "txt": b"a dog " * 17_000}),
        ("latin_caption", {"jpg": jpeg, "txt": "ein grüner Baum".encode("latin-1")}),
        ("../../etc/evil", {"jpg": jpeg, "txt": CAPTION}),
        ("twice", {"jpg": jpeg, "txt": CAPTION}),
        ("cmyk", {"jpg": encoded(photo.convert("CMYK")), "txt": CAPTION}),
        ("sixteen_bit", {"png": encoded(Image.fromarray(grey_HW), "PNG"), "txt": CAPTION}),
        ("animated", {"webp": encoded(photo, "WEBP", save_all=True, append_images=turned), "txt": CAPTION}),
        ("sideways", {"jpeg": encoded(photo, exif=sideways), "txt": CAPTION}),
        ("tiff_called_jpg", {"jpg": encoded(photo, "TIFF"), "txt": CAPTION}),
        ("lines", {"jpg": jpeg, "txt": b"a cat\r\non a\nroad,\x0b no\xe2\x80\xa8cattle"}),
        ("sub/folder/nested", {"jpg": jpeg, "txt": CAPTION}),
        ("twice", {"jpg": encoded(picture(1)), "txt": b"the second of the name"}),
    ]


def raw_tar(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """A tar as careless programs write it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good tars, one with every odd sample, and tars that are no tars."""
    folder = tmp_path_factory.mktemp("odd")
    for number in range(2):
        good = scene_tar(Scenes(split="bad"), range(number * 6, number * 6 + 6))
        (folder / f"good{number}.tar").write_bytes(good)
    (folder / "odd.tar").write_bytes(raw_tar(odd_members()))
    (folder / "cut.tar").write_bytes(scene_tar(Scenes(split="cut"), range(4))[:-12_000])
    (folder / "no_bytes.tar").write_bytes(b"")
    (folder / "no_members.tar").write_bytes(raw_tar([]))
    (folder / "no_tar.tar").write_bytes(b"<html>404 Not Found</html>" * 40)
    return folder


@pytest.fixture(scope="module")
def config(tars: Path) -> CorpusConfig:
    return CorpusConfig(sources=(Source("web", urls=(f"{tars}/*.tar",)),))


@pytest.fixture(scope="module")
def run(
    curate: Any, config: CorpusConfig, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    return curate(tmp_path_factory.mktemp("store"), config, tiny_encoder)


@pytest.fixture(scope="module")
def corpus(run: Any) -> Artifact:
    return run["corpus"]


def rows(artifact: Artifact, table: str, shard: str | None = None) -> pl.DataFrame:
    found = pl.from_arrow(artifact.read(table, shard))
    assert isinstance(found, pl.DataFrame)
    return found


@pytest.mark.parametrize("key", REJECTED)
def test_corpus_odd_sample_is_quarantined_with_its_reason(key: str, corpus: Artifact) -> None:
    found = rows(corpus, "quarantine", "web/odd").filter(pl.col("key") == key)
    assert found["reason"].to_list() == [REJECTED[key]]
    row = found.to_dicts()[0]
    assert row["sample_id"] == f"web/odd/{key}"
    assert (row["shard"], row["stage"]) == ("web/odd", "corpus")
    assert row["detail"]


def test_corpus_keeps_the_odd_samples_it_can_handle_and_no_others(corpus: Artifact) -> None:
    assert sorted(rows(corpus, "samples", "web/odd")["key"]) == KEPT_ODD


def test_corpus_of_two_samples_of_one_key_keeps_the_first(corpus: Artifact) -> None:
    kept = rows(corpus, "samples", "web/odd").filter(pl.col("key") == "twice")
    assert kept["caption"].to_list() == [CAPTION.decode()]


def test_corpus_newlines_in_a_caption_become_blanks(corpus: Artifact) -> None:
    kept = rows(corpus, "samples", "web/odd").filter(pl.col("key") == "lines")
    assert kept["caption"].to_list() == ["a cat on a road, no cattle"]


def test_corpus_image_turned_by_exif_has_the_upright_size(corpus: Artifact) -> None:
    sizes = {row["key"]: (row["width"], row["height"]) for row in rows(corpus, "samples").to_dicts()}
    assert sizes["sideways"] == (48, 64)
    assert sizes["cmyk"] == sizes["animated"] == (64, 48)


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("web/cut", "tar_truncated"),
        ("web/no_bytes", "tar_empty"),
        ("web/no_members", "tar_empty"),
        ("web/no_tar", "tar_unreadable"),
    ],
)
def test_corpus_broken_tar_is_one_row_of_quarantine(shard: str, reason: str, corpus: Artifact) -> None:
    assert rows(corpus, "quarantine", shard)["reason"].to_list() == [reason]


def test_corpus_tar_that_breaks_off_keeps_what_is_whole(corpus: Artifact) -> None:
    kept = rows(corpus, "samples", "web/cut")["key"].to_list()
    assert kept
    assert kept == [f"{n:06d}" for n in range(len(kept))]


def test_corpus_counts_every_sample_in_as_kept_or_quarantined(corpus: Artifact) -> None:
    counts, quarantine = corpus.manifest.counts, rows(corpus, "quarantine")
    assert (
        counts.kept
        == rows(corpus, "samples").height
        == 12 + len(KEPT_ODD) + rows(corpus, "samples", "web/cut").height
    )
    assert counts.seen == counts.kept + quarantine.height
    tally = quarantine.group_by("reason").len()
    assert counts.rejected == dict(zip(tally["reason"], tally["len"], strict=True))
    assert rows(corpus, "samples", "web/odd").height + rows(corpus, "quarantine", "web/odd").height == len(
        odd_members()
    )


def test_corpus_facts_are_those_of_the_bytes_as_stored(corpus: Artifact, config: CorpusConfig) -> None:
    import hashlib

    reader = CorpusReader(corpus, {corpus.fingerprint: shard_locations(config)})
    facts = {row["sample_id"]: (row["bytes"], row["sha256"]) for row in rows(corpus, "samples").to_dicts()}
    for shard in reader.shards:
        for sample_id, sample in reader.members(shard, ("jpg", "jpeg", "png", "webp")):
            data = image_bytes(sample) or b""
            assert facts[sample_id] == (len(data), hashlib.sha256(data).hexdigest())


def test_every_kept_sample_of_a_bad_corpus_ends_in_an_archive(run: Any, corpus: Artifact) -> None:
    kept = rows(corpus, "samples")["sample_id"].to_list()
    for stage, table in [("embed", "embeddings"), ("expand", "neighbours"), ("archive", "archives")]:
        artifact = run[stage]
        assert sorted(rows(artifact, table)["sample_id"]) == sorted(kept)
        assert artifact.manifest.counts.rejected == {}
    archives = rows(run["archive"], "archives")
    assert archives["concepts"].list.len().min() > 0


def test_mentions_of_a_caption_over_several_lines_are_exact_words(run: Any) -> None:
    """The caption says "cat", "road" and "cattle": the last is no cat, and no concept of the scenes."""
    names = dict(rows(run["vocabulary"], "concepts").select("concept_id", "name").iter_rows())
    said = rows(run["mentions"], "mentions").filter(pl.col("sample_id") == "web/odd/lines")["concept_ids"][0]
    assert {names[concept] for concept in said} == {"cat", "road"}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its tars open
def test_export_of_a_bad_corpus_is_read_by_webdataset_with_the_original_bytes(
    run: Any, corpus: Artifact, config: CorpusConfig
) -> None:
    webdataset = pytest.importorskip("webdataset")
    reader = CorpusReader(corpus, {corpus.fingerprint: shard_locations(config)})
    for shard in reader.shards:
        captions = dict(rows(corpus, "samples", shard).select("sample_id", "caption").iter_rows())
        originals = dict(reader.members(shard, ("jpg", "jpeg", "png", "webp")))
        tar = str(run["export"].file(f"{shard.replace('/', '.')}.tar"))
        found = list(webdataset.WebDataset(tar, shardshuffle=False, empty_check=False))
        assert [f"{shard}/{item['__key__']}" for item in found] == list(originals)
        for item, (sample_id, original) in zip(found, originals.items(), strict=True):
            extension = next(iter(original.members))
            assert item[extension] == original.members[extension]
            assert item["txt"].decode() == captions[sample_id]
            archive = json.loads(item["archive.json"])
            assert (archive["sample_id"], "\n" in captions[sample_id]) == (sample_id, False)
            assert {"name", "score", "donors", "cluster", "probability"} <= set(archive["concepts"][0])


def test_trainer_decodes_what_the_corpus_keeps_as_the_encoder_sees_it(
    corpus: Artifact, config: CorpusConfig
) -> None:
    reader = CorpusReader(corpus, {corpus.fingerprint: shard_locations(config)})
    for _, sample in reader.members("web/odd", ("jpg", "jpeg", "png", "webp")):
        data = image_bytes(sample) or b""
        ours, theirs = decode_image(data), np.asarray(decode_rgb(data))
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_regions_of_a_bad_corpus_are_those_of_the_kept_samples(
    run: Any, corpus: Artifact, config: CorpusConfig
) -> None:
    grouping = GroupingConfig(backbone="lab", size=16, starts=1, iterations=2)
    runtime = Runtime(device="cpu", locations={corpus.fingerprint: shard_locations(config)})
    inputs = {"corpus": corpus, "encoder": run["encoder"]}
    groups = materialize(GROUPS, GroupsConfig(grouping), inputs, run.plan.store, runtime)
    for shard in corpus.shards:
        assert sorted(read_groups(groups, shard)) == sorted(rows(corpus, "samples", shard)["key"])


@pytest.mark.usefixtures("run")
def test_corpus_writes_nothing_outside_its_store(tars: Path) -> None:
    assert not list(tars.parent.rglob("evil*"))
    assert {path.suffix for path in tars.iterdir()} == {".tar"}


def test_corpus_of_two_sources_with_one_tar_name_has_ids_that_differ(tars: Path, tmp_path: Path) -> None:
    url = f"{tars}/good0.tar"
    config = CorpusConfig(sources=(Source("one", urls=(url,)), Source("two", urls=(url,))))
    store = Store(str(tmp_path))
    corpus = materialize(CORPUS, config, CORPUS.outside(config, store.folder), store, ON_CPU)
    ids = rows(corpus, "samples")["sample_id"]
    assert ids.n_unique() == 12
    assert corpus.shards == ["one/good0", "two/good0"]


def test_corpus_of_two_tars_with_one_name_in_a_source_is_refused(tars: Path, tmp_path: Path) -> None:
    copy = tmp_path / "good0.tar"
    copy.write_bytes((tars / "good0.tar").read_bytes())
    config = CorpusConfig(sources=(Source("web", urls=(f"{tars}/good0.tar", str(copy))),))
    with pytest.raises(InputError, match=r"would both be 'web/good0'; make them two sources"):
        shard_locations(config)


def test_corpus_pattern_without_a_match_is_named(tmp_path: Path) -> None:
    config = CorpusConfig(sources=(Source("web", urls=(f"{tmp_path}/{{00..03}}.tar",)),))
    with pytest.raises(InputError, match=r"no file matches '.*\{00\.\.03\}\.tar'; check the source's urls"):
        shard_locations(config)


def test_corpus_pattern_of_ranges_lists_and_stars_names_each_tar_once(scene_tars: Path) -> None:
    patterns = ("{00000..00003}.tar", "0000{0,1,2,3}.tar", "*.tar", "0000?.tar")
    found = [
        list(shard_locations(CorpusConfig(sources=(Source("web", urls=(f"{scene_tars}/{p}",)),))))
        for p in patterns
    ]
    assert found == [[f"web/0000{n}" for n in range(4)]] * 4


def test_corpus_config_with_two_sources_of_one_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="different names"):
        CorpusConfig(sources=(Source("a", kind="scenes"), Source("a", kind="scenes")))


def test_rendered_corpus_lies_in_its_artifact_with_the_truth_of_every_scene(curated: Any) -> None:
    corpus = curated["corpus"]
    assert rows(corpus, "samples")["sample_id"].to_list() == rows(corpus, "truth")["sample_id"].to_list()
    with (Path(corpus.url) / "scenes.00002.tar").open("rb") as stream:
        samples = [item for item in read_tar(stream) if isinstance(item, Sample)]
    assert [sample.key for sample in samples] == [f"{n:06d}" for n in range(60, 90)]
    told = rows(corpus, "truth", "scenes/00002")["classes"].to_list()
    assert [json.loads(sample.members["json"])["concepts"] for sample in samples] == told
