"""Captions in tables: a table of image paths, packed into tars, and the sidecars of img2dataset.

Tables are Parquet, CSV or JSONL, local or behind any fsspec URL. They are read a slice at a time.
"""

import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import polars as pl

from curation.images import Fault
from storage.errors import InputError
from storage.tars import Sample, write_tar

ROWS = 1000  # of a table in one tar
PATHS = ("path", "image_path", "filepath", "file_path", "file_name", "filename", "image", "file", "url")
CAPTIONS = ("caption", "captions", "text", "title", "txt", "alt_text")
_SCANS: dict[str, Callable[..., pl.LazyFrame]] = {
    ".parquet": pl.scan_parquet,
    ".csv": pl.scan_csv,
    ".jsonl": pl.scan_ndjson,
    ".ndjson": pl.scan_ndjson,
}


@dataclass(frozen=True)
class PairTable:
    """A table of image paths and captions. Paths are absolute, or relative to the table's folder.

    Columns are known by their names: the first of `PATHS` and the first of `CAPTIONS` that it has. A cell
    may hold a list of captions.
    """

    url: str

    @cached_property
    def rows(self) -> int:
        """Rows in all.

        Raises:
            InputError: for a table that cannot be read or has no such columns.
        """
        return int(self._read(lambda frame: frame.select(pl.len())).item())

    def slice(self, start: int, count: int) -> pl.DataFrame:
        """Columns ``path`` and ``caption`` of some rows."""
        path, caption = (
            self._column(names, what) for names, what in ((PATHS, "path"), (CAPTIONS, "caption"))
        )
        wanted = [pl.col(path).cast(pl.String).alias("path"), pl.col(caption).alias("caption")]
        return self._read(lambda frame: frame.select(wanted).slice(start, count))

    def locate(self, path: str) -> str:
        """Where an image of the table lies."""
        if "://" in path or path.startswith("/"):
            return path
        return f"{self.url.rpartition('/')[0] or '.'}/{path}"

    def _column(self, names: Sequence[str], what: str) -> str:
        found = {name.lower(): name for name in self._columns}
        known = next((found[name] for name in names if name in found), None)
        if known is None:
            raise InputError(
                f"'{self.url}' has columns {self._columns}, none of them a {what}; "
                f"name it one of {list(names)}"
            )
        return known

    @cached_property
    def _columns(self) -> list[str]:
        return self._read(lambda frame: frame.head(0)).columns

    def _read(self, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
        try:
            return query(_scan(self.url)).collect()
        except (pl.exceptions.PolarsError, OSError, ValueError) as error:
            raise InputError(f"cannot read the table '{self.url}' ({error}); is it whole?") from error


def _scan(url: str) -> pl.LazyFrame:
    suffix = Path(url).suffix.lower()
    if suffix not in _SCANS:
        raise InputError(f"'{url}' is no table known here; give one of {', '.join(_SCANS)}")
    local = fsspec.open_local(f"simplecache::{url}") if "://" in url else url
    return _SCANS[suffix](local)


def table_shards(urls: Sequence[str]) -> dict[str, tuple[PairTable, int]]:
    """Shard stems, each with its table and its first row there."""
    tables = [PairTable(url) for url in urls]
    starts = [(table, start) for table in tables for start in range(0, table.rows, ROWS)]
    return {f"{number:05d}": start for number, start in enumerate(starts)}


def table_files(table: PairTable, start: int) -> list[str]:
    """Where the images of a shard lie, but for those that are not there."""
    urls = [table.locate(path) for path in table.slice(start, ROWS)["path"].drop_nulls()]
    return [url for url in urls if _exists(url)]


def _exists(url: str) -> bool:
    fs, path = fsspec.core.url_to_fs(url)
    return bool(fs.isfile(path))


def table_tar(table: PairTable, start: int) -> bytes:
    """A WebDataset tar of some rows; a sample whose image is not there has none and is rejected later."""
    stream = io.BytesIO()
    write_tar(stream, table_samples(table, start))
    return stream.getvalue()


def table_samples(table: PairTable, start: int) -> Iterator[Sample]:
    """The samples of a shard one by one."""
    for number, row in enumerate(table.slice(start, ROWS).iter_rows(named=True), start):
        yield Sample(f"{number:08d}", _members(table, row))


def _members(table: PairTable, row: dict[str, Any]) -> dict[str, bytes]:
    path, caption = row["path"] or "", row["caption"]
    members = {"json": json.dumps({"path": path, "captions": caption}).encode()}
    if isinstance(caption, str):
        members = {"txt": caption.encode("utf-8", "surrogatepass"), **members}
    url = table.locate(path)
    if path and _exists(url):
        with fsspec.open(url, "rb") as stream:
            members = {_extension(path): stream.read(), **members}
    return members


def _extension(path: str) -> str:
    suffix = Path(path).suffix.lower().removeprefix(".")
    return (
        suffix if suffix in ("jpg", "jpeg", "png", "webp") else "jpg"
    )  # judged by its bytes, not by its name


def sidecar(tar_url: str) -> str:
    """The table that img2dataset writes beside a tar."""
    return f"{tar_url.removesuffix('.tar')}.parquet"


def lost_pairs(tar_url: str, keys: Collection[str]) -> dict[str, Fault]:
    """Pairs that img2dataset's table lists and its tar lacks, by key.

    Args:
        tar_url: of the tar; the table lies beside it.
        keys: of every sample that was met in the tar, accepted or not.

    Returns:
        ``download_failed`` for those that were never downloaded, ``lost_from_tar`` for those that were.

    Raises:
        InputError: for a missing or foreign table.
    """
    url = sidecar(tar_url)
    try:
        frame = _scan(url).select(pl.col("key").cast(pl.String), "status", "error_message").collect()
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise InputError(
            f"'{url}' is not the table that img2dataset writes beside its tars ({error}); "
            "give such tars, or kind = 'webdataset'"
        ) from error
    missing = frame.filter(~pl.col("key").is_in(list(keys)))
    return {key: _lost(status, message) for key, status, message in missing.iter_rows()}


def _lost(status: str, message: str | None) -> Fault:
    if status == "success":
        return Fault("lost_from_tar", "downloaded, says its table, but the tar does not hold it")
    return Fault("download_failed", f"{status}: {message or 'no message'}")
