"""A committed result of a stage, and the store it lies in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from storage.errors import StoreError
from storage.files import Folder, cached_copy
from storage.fingerprint import is_fingerprint
from storage.manifest import Manifest, Part, manifest_from_json
from storage.parquet import read_table
from storage.schemas import SCHEMAS

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """Handle of what a stage wrote: picklable, cheap, read on demand."""

    stage: str
    fingerprint: str
    url: str

    @property
    def id(self) -> str:
        """Short name for people: ``stage/fingerprint``."""
        return f"{self.stage}/{self.fingerprint}"

    @cached_property
    def folder(self) -> Folder:
        """Where the parts lie."""
        return Folder(self.url)

    @property
    def committed(self) -> bool:
        """Whether the manifest is there."""
        return self.folder.exists(MANIFEST)

    @cached_property
    def manifest(self) -> Manifest:
        """The record beside the data.

        Raises:
            StoreError: if the artifact was never committed.
        """
        try:
            data = self.folder.read(MANIFEST)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.id} is not in the store: run the pipeline up to '{self.stage}'"
            ) from error
        return manifest_from_json(data, f"{self.url}/{MANIFEST}")

    def parts(self, table: str | None, shard: str | None = None) -> list[Part]:
        """Parts of a table (None: files that are no tables), of one shard or of all."""
        wanted = [part for part in self.manifest.parts if part.table == table]
        return [part for part in wanted if shard is None or part.shard == shard]

    @cached_property
    def shards(self) -> list[str]:
        """Shards the artifact is made of, in order."""
        return list(dict.fromkeys(part.shard for part in self.manifest.parts))

    def read(self, table: str, shard: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a table, checked against its schema; of one shard, or of all in shard order.

        Raises:
            StoreError: for an unreadable part or other columns than the schema's.
        """
        pieces = [read_table(self.folder, part.name, columns) for part in self.parts(table, shard)]
        return pa.concat_tables(pieces) if pieces else _empty(table, columns)

    def file(self, name: str) -> Path:
        """Local path of a file part (a cached copy when the store is remote)."""
        part = next((part for part in self.manifest.parts if part.name == name), None)
        if part is None:
            raise StoreError(
                f"{self.id} has no file '{name}', it has {[p.name for p in self.manifest.parts]}"
            )
        return cached_copy(self.folder, name, part.sha256)

    def local_folder(self) -> Path:
        """A local folder that holds every file part (for libraries that read folders)."""
        if self.folder.is_local:
            return Path(self.folder.path())
        for part in self.manifest.parts:
            copy = cached_copy(self.folder, part.name, self.fingerprint)
        return copy.parent


def _empty(table: str, columns: Sequence[str] | None) -> pa.Table:
    rows = SCHEMAS[table].empty_table()
    return rows.select(columns) if columns is not None else rows


class Store:
    """All artifacts under one URL: ``<store>/<stage>/<fingerprint>/``."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        self.url = url.rstrip("/")

    def artifact(self, stage: str, fingerprint: str) -> Artifact:
        """The handle of an artifact, whether or not it has been computed."""
        return Artifact(stage, fingerprint, f"{self.url}/{stage}/{fingerprint}")

    def artifacts(self, stage: str | None = None) -> list[Artifact]:
        """Every committed artifact (of one stage, or of all), oldest first."""
        found = [artifact for artifact in self._entries(stage) if artifact.committed]
        return sorted(found, key=lambda artifact: artifact.manifest.created)

    def unfinished(self) -> list[Artifact]:
        """Folders of interrupted runs: parts without a manifest."""
        return [artifact for artifact in self._entries(None) if not artifact.committed]

    def _entries(self, stage: str | None) -> Iterator[Artifact]:
        stages = [stage] if stage else [name for name in self.folder.list() if not _reserved(name)]
        for name in stages:
            for fingerprint in filter(is_fingerprint, self.folder.list(name)):
                yield self.artifact(name, fingerprint)


def _reserved(name: str) -> bool:
    return name.startswith(".") or name == "runs"
