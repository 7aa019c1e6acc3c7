"""WebDataset tars as streams: what is whole comes out as samples, what is not as named rejections."""

import io
import itertools
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from storage.tar_entries import DamageError, Entry, Source, entries

MAX_MEMBER_BYTES = 256 * 2**20  # what is larger is skipped, never held in memory
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_UNSAFE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Sample:
    """The members that share a key: lower-case extension ("jpg", "archive.json") to bytes."""

    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class Rejection:
    """A sample, or with key "" a place in the tar, that could not be read, and why.

    Reasons: ``tar_truncated``, ``tar_unreadable``, ``tar_empty``, ``tar_trailing_data``,
    ``duplicate_key``, ``unsafe_name``, ``not_a_file``, ``member_too_large``.
    """

    key: str
    reason: str
    detail: str


class _Member(NamedTuple):
    key: str
    extension: str
    data: bytes | None  # None: not asked for
    fault: tuple[str, str] | None = None  # reason, detail


def read_tar(stream: BinaryIO, extensions: Collection[str] | None = None) -> Iterator[Sample | Rejection]:
    """Stream the samples of a WebDataset tar, plain or gzipped, in the order of the tar.

    Consecutive members whose paths agree up to the first dot of the last component are a sample; a
    leading "./" does not count. Each such group yields one sample or one rejection; a sample that
    repeats an extension also yields a ``duplicate_key`` rejection, and so does a group whose key
    was met before: the first stands. Directories, and files with no extension or nothing before it
    ("README", ".DS_Store"), belong to no sample and are passed over. Bytes of a name that are not
    UTF-8 become backslash escapes.

    A damaged tar yields what is whole before the damage, then a rejection; a sample that is open
    where a tar breaks off between two members counts as whole.

    Args:
        stream: A binary file; only ``read`` is used.
        extensions: Members to keep, lower-case; others are skipped unread. None keeps all.

    Yields:
        Samples, and a rejection for each thing that could not be read.

    Raises:
        OSError: The stream itself failed: a fault of the storage, not of the data.
    """
    outcome = None
    for outcome in _outcomes(_members(Source(stream), extensions)):
        yield outcome
    if outcome is None:
        yield Rejection("", "tar_empty", "the tar holds no samples")


def write_tar(stream: BinaryIO, samples: Iterable[Sample]) -> None:
    """Write samples as a plain tar whose bytes depend on nothing but the samples and their order.

    Members of a sample are written by extension, owned by nobody, dated 0.

    Raises:
        ValueError: A key or an extension that would not be read back as it is, or a key repeated.
    """
    written: set[str] = set()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            if sample.key in written:
                raise ValueError(f"key {sample.key!r} comes twice; keys must be unique in a tar")
            written.add(sample.key)
            for extension, data in sorted(sample.members.items()):
                header = tarfile.TarInfo(_member_name(sample.key, extension))
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def _member_name(key: str, extension: str) -> str:
    name = f"{key}.{extension}"
    altered = _split(name.removeprefix("./")) != (key, extension)
    if altered or not extension or _UNSAFE.search(name):
        raise ValueError(
            f"member {name!r} would not be read back as key {key!r}, extension {extension!r}; "
            "allowed are relative paths with no dot in their last part, and lower-case extensions"
        )
    return name


def _outcomes(members: Iterator[_Member]) -> Iterator[Sample | Rejection]:
    seen: set[str] = set()
    for key, members_of_key in itertools.groupby(members, key=lambda member: member.key):
        group = list(members_of_key)
        fault = next((member.fault for member in group if member.fault), None)
        if key in seen:
            yield Rejection(key, "duplicate_key", "an earlier sample of this tar has the key")
        elif fault:
            yield Rejection(key, *fault)
        else:
            yield from _sample(key, group)
        seen.add(key)


def _sample(key: str, group: list[_Member]) -> Iterator[Sample | Rejection]:
    members: dict[str, bytes] = {}
    repeated = []
    for member in group:
        if member.data is None:
            continue
        if member.extension in members:
            repeated.append(member.extension)
        else:
            members[member.extension] = member.data
    yield Sample(key, members)
    if repeated:
        yield Rejection(key, "duplicate_key", f"the key has more than one {', '.join(repeated)}")


def _members(source: Source, extensions: Collection[str] | None) -> Iterator[_Member]:
    key = ""
    try:
        for entry in entries(source):
            key, extension = _split(entry.name)
            wanted = extensions is None or not extension or extension in extensions
            fault = _fault(entry, wanted=wanted)
            data = None
            if fault or not (wanted and extension) or entry.type == tarfile.DIRTYPE:
                source.skip_data(entry)
            else:
                data = source.take_data(entry)
            if fault or (extension and entry.type != tarfile.DIRTYPE):
                yield _Member(key, extension, data, fault)
            key = ""
        source.expect_end()
    except DamageError as damage:
        yield _Member(key, "", None, damage.args)


def _split(name: str) -> tuple[str, str]:
    """Key and lower-case extension; the extension is empty for what belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def _fault(entry: Entry, *, wanted: bool) -> tuple[str, str] | None:
    if entry.type == tarfile.DIRTYPE:
        return None
    if _UNSAFE.search(entry.name):
        return "unsafe_name", f"{entry.name!r} is not a plain relative path"
    if wanted and entry.type not in _FILES:
        return "not_a_file", f"{entry.name!r} is a link, a device or sparse (type {entry.type!r})"
    if wanted and entry.size > MAX_MEMBER_BYTES:
        return "member_too_large", f"{entry.size} bytes; at most {MAX_MEMBER_BYTES} are read"
    return None
