import hashlib
import json
import os
from pathlib import Path

import pytest

from storage.digest import CACHE, digest_files
from storage.errors import InputError
from storage.files import Folder


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "store"))


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{n}.tar" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * 1000)
    return [str(path) for path in paths]


def test_digests_are_sha256_of_the_bytes(shards: list[str], store: Folder) -> None:
    expected = {url: hashlib.sha256(Path(url).read_bytes()).hexdigest() for url in shards}
    assert digest_files(shards, store) == expected


def test_digest_of_an_unchanged_file_is_not_computed_again(shards: list[str], store: Folder) -> None:
    digest_files(shards, store)
    known = json.loads(store.read(CACHE))
    known[shards[0]][1] = "remembered"
    store.write(CACHE, json.dumps(known).encode())
    assert digest_files(shards, store)[shards[0]] == "remembered"


@pytest.mark.parametrize("times", ["new", "set back"])
def test_digest_of_a_file_with_one_changed_byte_changes(times: str, shards: list[str], store: Folder) -> None:
    before, path = digest_files(shards, store), Path(shards[1])
    facts, data = path.stat(), bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    if times == "set back":
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    after = digest_files(shards, store)
    assert {url for url in shards if before[url] != after[url]} == {shards[1]}


def test_digest_of_a_moved_file_stays(shards: list[str], store: Folder, tmp_path: Path) -> None:
    before = digest_files(shards, store)[shards[0]]
    moved = Path(shards[0]).rename(tmp_path / "elsewhere.tar")
    assert digest_files([str(moved)], store)[str(moved)] == before


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'"text"'])
def test_broken_digest_cache_is_made_anew(broken: bytes, shards: list[str], store: Folder) -> None:
    expected = digest_files(shards, store)
    store.write(CACHE, broken)
    assert digest_files(shards, store) == expected
    assert set(json.loads(store.read(CACHE))) == set(shards)


def test_missing_file_is_named(shards: list[str], store: Folder) -> None:
    with pytest.raises(InputError, match=r"cannot read '.*none\.tar'.*check the path or URL"):
        digest_files([*shards, "/no/such/none.tar"], store)
