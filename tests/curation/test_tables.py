"""Corpora that come as tables: image paths with captions, and the sidecars of img2dataset."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from curation.captions import CaptionLimits
from curation.corpus import CORPUS, CorpusConfig, corpus_identity
from curation.sources import Kind, Source
from curation.tables import ROWS, PairTable
from storage.artifact import Artifact, Store
from storage.errors import InputError
from storage.files import Folder
from storage.reader import CorpusReader, image_bytes
from storage.runtime import Runtime
from storage.stage import materialize
from storage.tars import Sample, write_tar

CAPTIONS = ["a dog", 'a "cat",\nasleep', "<b>grass</b>"]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them in a folder below."""
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(["a.jpg", "pictures/b.jpg", "c.JPG"]):
        (tmp_path / name).write_bytes(picture(number))
    return tmp_path


def write_table(path: Path, columns: dict[str, list[Any]]) -> str:
    frame = pl.DataFrame(columns)
    match path.suffix:
        case ".parquet":
            frame.write_parquet(path)
        case ".csv":
            frame.write_csv(path)
        case _:
            frame.write_ndjson(path)
    return str(path)


def corpus(store: Path, url: str, kind: Kind = "table", captions: CaptionLimits | None = None) -> Artifact:
    config = CorpusConfig((Source("mine", kind, urls=(url,)),), captions=captions or CaptionLimits())
    artifact_store = Store(str(store))
    inputs = corpus_identity(config, Folder(str(store)))
    return materialize(CORPUS, config, inputs, artifact_store, Runtime(device="cpu"))


def rejected(artifact: Artifact) -> dict[str, str]:
    rows = artifact.read("quarantine").to_pylist()
    return {row["key"]: row["reason"] for row in rows}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_table_of_paths_and_captions_becomes_a_corpus_with_the_original_bytes(
    suffix: str, folder: Path, tmp_path: Path
) -> None:
    paths = ["a.jpg", "pictures/b.jpg", str(folder / "c.JPG")]
    url = write_table(folder / f"pairs{suffix}", {"id": [7, 8, 9], "path": paths, "caption": CAPTIONS})
    found = corpus(tmp_path / "store", url)
    reader = CorpusReader(found)
    assert reader.shards == ["mine/00000"]
    rows = reader.samples("mine/00000")
    assert rows["caption"].to_list() == ["a dog", 'a "cat", asleep', "<b>grass</b>"]
    bytes_of = {name: image_bytes(s) for name, s in reader.members("mine/00000", ("jpg",))}
    assert list(bytes_of.values()) == [picture(0), picture(1), picture(2)]
    assert rejected(found) == {}


def test_row_without_image_file_path_or_caption_is_rejected_with_a_reason(
    folder: Path, tmp_path: Path
) -> None:
    columns = {"file": ["a.jpg", "gone.jpg", None, "c.JPG"], "text": ["a dog", "a cat", "a cow", None]}
    found = corpus(tmp_path / "store", write_table(folder / "pairs.parquet", columns))
    assert rejected(found) == {
        "00000001": "image_missing",
        "00000002": "image_missing",
        "00000003": "caption_missing",
    }
    assert found.manifest.counts.seen == 4


def test_first_of_several_captions_is_the_samples(folder: Path, tmp_path: Path) -> None:
    columns = {"image": ["a.jpg"], "captions": [["a dog", "an animal"]]}
    found = corpus(tmp_path / "store", write_table(folder / "pairs.jsonl", columns))
    assert found.read("samples")["caption"].to_pylist() == ["a dog"]
    sample = next(s for _, s in CorpusReader(found).members("mine/00000", ("json",)))
    assert json.loads(sample.members["json"])["captions"] == ["a dog", "an animal"]


def test_all_captions_of_a_list_column_are_kept_where_that_is_asked(folder: Path, tmp_path: Path) -> None:
    columns = {"image": ["a.jpg", "c.JPG"], "captions": [["a dog", "an animal"], ["<b>grass</b>"]]}
    for suffix in (".parquet", ".jsonl"):
        url = write_table(folder / f"pairs{suffix}", columns)
        found = corpus(tmp_path / "store", url, captions=CaptionLimits(use="all"))
        assert found.read("captions")["captions"].to_pylist() == columns["captions"]
        assert found.read("samples")["caption"].to_pylist() == ["a dog", "<b>grass</b>"]


def test_long_tables_are_cut_into_shards_in_order(tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(picture(0))
    count = ROWS + 5
    columns = {"path": ["one.jpg"] * count, "caption": [f"dog {n}" for n in range(count)]}
    found = corpus(tmp_path / "store", write_table(tmp_path / "pairs.csv", columns))
    assert found.shards == ["mine/00000", "mine/00001"]
    assert found.read("samples")["caption"].to_pylist() == columns["caption"]


def test_identity_changes_with_an_image_that_the_table_names(folder: Path, tmp_path: Path) -> None:
    url = write_table(folder / "pairs.csv", {"path": ["a.jpg"], "caption": ["a dog"]})
    before = corpus(tmp_path / "store", url)
    (folder / "a.jpg").write_bytes(picture(5))
    after = corpus(tmp_path / "store", url)
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        (
            "pairs.csv",
            {"picture": ["a.jpg"], "caption": ["a"]},
            r"\['picture', 'caption'\], none of them a path",
        ),
        ("pairs.csv", {"path": ["a.jpg"], "words": ["a"]}, "none of them a caption"),
    ],
)
def test_table_without_the_columns_says_which_it_has(
    name: str, columns: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    table = PairTable(write_table(tmp_path / name, columns))
    with pytest.raises(InputError, match=message):
        table.slice(0, 1)


@pytest.mark.parametrize("content", [b"PAR1 and then nothing", b""])
def test_broken_table_is_one_clear_message(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read the table '.*pairs\.parquet'"):
        corpus(tmp_path / "store", str(tmp_path / "pairs.parquet"))


def test_unknown_table_format_names_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "pairs.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"give one of \.parquet, \.csv, \.jsonl"):
        corpus(tmp_path / "store", str(tmp_path / "pairs.xlsx"))


def write_img2dataset(folder: Path, held: list[str]) -> str:
    """A tar and its table, as img2dataset writes them: five pairs, one never downloaded."""
    samples = [Sample(key, {"jpg": picture(1), "txt": b"a dog", "json": b"{}"}) for key in held]
    with (folder / "00000.tar").open("wb") as stream:
        write_tar(stream, samples)
    columns = {
        "key": [f"00000000{n}" for n in range(5)],
        "caption": ["a dog"] * 5,
        "status": ["success", "success", "failed_to_download", "success", "success"],
        "error_message": [None, None, "HTTP Error 404: Not Found", None, None],
    }
    write_table(folder / "00000.parquet", columns)
    return str(folder / "00000.tar")


def test_pairs_that_img2dataset_lost_are_counted_with_a_reason(tmp_path: Path) -> None:
    url = write_img2dataset(tmp_path, ["000000000", "000000001", "000000004"])
    found = corpus(tmp_path / "store", url, "img2dataset")
    assert rejected(found) == {"000000002": "download_failed", "000000003": "lost_from_tar"}
    assert (found.manifest.counts.seen, found.manifest.counts.kept) == (5, 3)
    detail = found.read("quarantine")["detail"].to_pylist()[0]
    assert detail == "failed_to_download: HTTP Error 404: Not Found"


def test_tar_without_its_table_is_no_output_of_img2dataset(tmp_path: Path) -> None:
    url = write_img2dataset(tmp_path, ["000000000"])
    (tmp_path / "00000.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"not the table that img2dataset writes.*kind = 'webdataset'"):
        corpus(tmp_path / "store", url, "img2dataset")
