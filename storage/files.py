"""Files behind any fsspec URL, written so that a reader sees all of a file or none of it."""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.errors import StoreError

Writer = Callable[[BinaryIO], object]


class Folder:
    """A folder of a local or remote file system. Picklable: workers reopen it by its URL."""

    def __init__(self, url: str) -> None:
        try:
            fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise StoreError(
                f"cannot use '{url}': {error}; give a folder or an fsspec URL such as s3://bucket/x"
            ) from error
        self.url, self.fs, self.root = url, fs, str(root).rstrip("/")

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.url,)

    @property
    def is_local(self) -> bool:
        """Whether files here have paths."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The path of ``name`` in the file system's own terms."""
        return f"{self.root}/{name}" if name else self.root

    def folder(self, name: str) -> "Folder":
        """A folder inside this one."""
        return Folder(f"{self.url.rstrip('/')}/{name}")

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        self.fs.invalidate_cache()  # others write to the store too
        return bool(self._ask("exists", self.path(name)))

    def list(self, name: str = "") -> list[str]:
        """Names directly inside, sorted; nothing for a folder that is not there."""
        self.fs.invalidate_cache()
        try:
            entries = self._ask("ls", self.path(name), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return cast("bytes", self._ask("cat_file", self.path(name)))

    def open(self, name: str) -> BinaryIO:
        """A file to read from."""
        return cast("BinaryIO", self._ask("open", self.path(name), "rb"))

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file to a local path."""
        self._ask("get_file", self.path(name), str(target))

    def remove(self, name: str = "") -> None:
        """Removes a file, or a folder with all it holds; nothing happens when it is not there."""
        if self.exists(name):
            self._ask("rm", self.path(name), recursive=True)

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls the file system.

        Raises:
            FileNotFoundError: for a file that is not there.
            StoreError: for whatever else goes wrong; each file system has its own kinds of errors.
        """
        try:
            return getattr(self.fs, method)(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StoreError(
                f"cannot use the store '{self.url}': {reason}; check its address, credentials and permissions"
            ) from error

    def write(self, name: str, content: bytes | Writer) -> tuple[int, str]:
        """Writes a file whole: aside, synced, then renamed (one put on an object store).

        Returns:
            its size in bytes and SHA-256.

        Raises:
            StoreError: when the store is full or may not be written.
        """
        with _store_faults(self.url):
            if self.is_local:
                return self._write_local(Path(self.path(name)), content)
            return self._write_remote(self.path(name), content)

    def _write_local(self, path: Path, content: bytes | Writer) -> tuple[int, str]:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with aside.open("wb") as stream:
                _pour(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
            facts = aside.stat().st_size, sha256(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return facts

    def _write_remote(self, path: str, content: bytes | Writer) -> tuple[int, str]:
        with tempfile.TemporaryDirectory() as scratch:
            aside = Path(scratch) / "part"
            with aside.open("wb") as stream:
                _pour(content, stream)
            self._ask("put_file", str(aside), path)
            return aside.stat().st_size, sha256(aside)


def _pour(content: bytes | Writer, stream: BinaryIO) -> None:
    if isinstance(content, bytes):
        stream.write(content)
    else:
        content(stream)


@contextmanager
def _store_faults(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"cannot write to the store '{url}': {reason}; "
            "free space, mend permissions, or give another --store"
        ) from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_copy(folder: Folder, name: str, expected_sha256: str) -> Path:
    """A local path of a file: itself when local, else a copy kept by its checksum."""
    if folder.is_local:
        return Path(folder.path(name))
    root = Path(os.environ.get("COCU_CACHE", Path.home() / ".cache" / "cocu")) / expected_sha256[:16]
    copy = root / name
    if not copy.exists():
        root.mkdir(parents=True, exist_ok=True)
        aside = copy.with_name(f".{uuid.uuid4().hex}")
        folder.fetch(name, aside)
        aside.replace(copy)
    return copy
