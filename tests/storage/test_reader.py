from pathlib import Path
from typing import Any

import pytest

from curation.corpus import CORPUS, CorpusConfig, shard_locations
from curation.sources import Source
from storage.artifact import Artifact, Store
from storage.errors import InputError
from storage.reader import CorpusReader, image_bytes
from storage.runtime import Runtime
from storage.stage import materialize
from storage.tars import Sample, read_tar, write_tar


def read_in_place(folder: Path, store: Path) -> tuple[Artifact, CorpusReader]:
    config = CorpusConfig(sources=(Source("web", urls=(f"{folder}/*.tar",)),))
    target = Store(str(store))
    corpus = materialize(CORPUS, config, CORPUS.outside(config, target.folder), target, Runtime())
    return corpus, CorpusReader(corpus, {corpus.fingerprint: shard_locations(config)})


def samples_of(tar: Path) -> list[Sample]:
    with tar.open("rb") as stream:
        return [item for item in read_tar(stream) if isinstance(item, Sample)]


def test_reader_gives_the_original_bytes_by_sample_id(scene_tars: Path, tmp_path: Path) -> None:
    _, reader = read_in_place(scene_tars, tmp_path)
    assert reader.shards == [f"web/0000{n}" for n in range(4)]
    found = list(reader.members("web/00001", ("jpg",)))
    expected = samples_of(scene_tars / "00001.tar")
    assert [name for name, _ in found] == [f"web/00001/{sample.key}" for sample in expected]
    assert [image_bytes(sample) for _, sample in found] == [sample.members["jpg"] for sample in expected]


def test_corpus_that_moved_is_the_same_corpus_and_is_read_where_it_is_now(
    scene_tars: Path, tmp_path: Path
) -> None:
    before, _ = read_in_place(scene_tars, tmp_path / "store")
    moved = tmp_path / "moved"
    moved.mkdir()
    for tar in scene_tars.iterdir():
        (moved / tar.name).write_bytes(tar.read_bytes())
    after, reader = read_in_place(moved, tmp_path / "store")
    assert after == before
    assert len(list(reader.members("web/00003", ("txt",)))) == 20


def test_corpus_with_one_changed_byte_is_another_corpus(scene_tars: Path, tmp_path: Path) -> None:
    before, _ = read_in_place(scene_tars, tmp_path / "store")
    changed = tmp_path / "changed"
    changed.mkdir()
    for tar in scene_tars.iterdir():
        data = bytearray(tar.read_bytes())
        data[-1] ^= int(tar.stem == "00002")  # in the padding: no sample differs
        (changed / tar.name).write_bytes(data)
    after, _ = read_in_place(changed, tmp_path / "store")
    assert after.fingerprint != before.fingerprint


def test_shard_that_lost_samples_since_is_refused_by_name(scene_tars: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    tar = folder / "00000.tar"
    tar.write_bytes((scene_tars / "00000.tar").read_bytes())
    _, reader = read_in_place(folder, tmp_path / "store")
    with tar.open("wb") as stream:
        write_tar(stream, samples_of(scene_tars / "00000.tar")[:17])
    lost = r"'web/00000' no longer holds 3 of its 20 samples, such as 'web/00000/000017'.*run the pipeline"
    with pytest.raises(InputError, match=lost):
        list(reader.members("web/00000", ("jpg",)))


def test_shard_that_is_gone_is_named_with_its_place(scene_tars: Path, tmp_path: Path) -> None:
    corpus, _ = read_in_place(scene_tars, tmp_path / "store")
    elsewhere: dict[str, Any] = {corpus.fingerprint: {"web/00000": f"{tmp_path}/gone.tar"}}
    with pytest.raises(InputError, match=r"cannot open shard 'web/00000' at '.*gone\.tar'"):
        CorpusReader(corpus, elsewhere).open("web/00000")
