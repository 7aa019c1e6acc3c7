import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from storage.errors import StoreError
from storage.files import Folder, cached_copy, sha256

ROOT = Path(__file__).parents[2]
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from storage.errors import StoreError
from storage.files import Folder
try:
    Folder(sys.argv[1]).write("part", bytes(5000))
except StoreError as error:
    sys.exit(str(error))
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_returns_size_and_checksum_and_leaves_only_the_file(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "new"))
    size, checksum = folder.write("part", b"hello")
    assert (size, checksum) == (5, sha256(tmp_path / "new" / "part"))
    assert folder.read("part") == b"hello"
    assert names(tmp_path / "new") == ["part"]


def test_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("part", b"old")

    def fail(stream: BinaryIO) -> None:
        stream.write(b"half of the new")
        stream.flush()
        assert folder.read("part") == b"old"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        folder.write("part", fail)
    assert folder.read("part") == b"old"
    assert names(tmp_path) == ["part"]


def test_readers_beside_writers_see_whole_files_only(tmp_path: Path) -> None:
    folder, contents = Folder(str(tmp_path)), [bytes([value]) * 100_000 for value in range(4)]
    folder.write("part", contents[0])
    threads = [
        threading.Thread(target=lambda data=data: [folder.write("part", data) for _ in range(15)])
        for data in contents
    ]
    for thread in threads:
        thread.start()
    seen = {folder.read("part") for _ in range(200)}
    for thread in threads:
        thread.join()
    assert seen <= set(contents)
    assert names(tmp_path) == ["part"]


def test_store_below_a_file_cannot_be_written_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write to the store '.*file/store'.*give another --store"):
        Folder(str(tmp_path / "file" / "store")).write("part", b"x")


def test_store_without_space_is_one_clear_fault_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "cannot write to the store" in done.stderr
    assert "File too large" in done.stderr
    assert "free space" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s4://x"])
def test_folder_of_an_unknown_protocol_says_what_is_allowed(url: str) -> None:
    with pytest.raises(StoreError, match=r"give a folder or an fsspec URL such as s3://bucket/x"):
        Folder(url)


def test_folder_lists_names_sorted_and_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for name in ("b", "a/inner", "c.txt"):
        folder.write(name, b"")
    assert folder.list() == ["a", "b", "c.txt"]
    assert folder.list("a") == ["inner"]
    assert folder.list("no/such") == []


def test_remove_takes_files_and_folders_and_forgives_absence(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a/inner", b"")
    folder.write("b", b"")
    for name in ("a", "b", "b"):
        folder.remove(name)
    assert folder.list() == []


def test_folder_survives_pickling(tmp_path: Path) -> None:
    folder = pickle.loads(pickle.dumps(Folder(str(tmp_path)).folder("inner")))  # noqa: S301 - from here
    folder.write("part", b"x")
    assert (tmp_path / "inner" / "part").read_bytes() == b"x"


def test_folder_in_memory_reads_what_it_wrote_and_copies_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCU_CACHE", str(tmp_path))
    folder = Folder("memory://store/x")
    _, checksum = folder.write("part", b"remote")
    assert folder.exists("part")
    copy = cached_copy(folder, "part", checksum)
    assert copy.read_bytes() == b"remote"
    folder.remove("part")
    assert cached_copy(folder, "part", checksum) == copy
    with pytest.raises(FileNotFoundError):
        folder.read("part")
