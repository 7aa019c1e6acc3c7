import gzip
import io
import tarfile
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import tar_entries, tars
from storage.tar_entries import DamageError, Entry
from storage.tars import Rejection, Sample, read_tar, write_tar

CAT = {"jpg": b"a cat" * 200, "txt": b"a cat"}
DOG = {"jpg": b"a dog" * 300, "txt": b"a dog"}


def header(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], **options: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, data in members:
            info = header(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def written(samples: Iterable[Sample]) -> bytes:
    stream = io.BytesIO()
    write_tar(stream, samples)
    return stream.getvalue()


def read(data: bytes, extensions: tuple[str, ...] | None = None) -> list[Sample | Rejection]:
    return list(read_tar(io.BytesIO(data), extensions))


def faults(items: list[Sample | Rejection]) -> list[tuple[str, str]]:
    return [(item.key, item.reason) for item in items if isinstance(item, Rejection)]


def keys(items: list[Sample | Rejection]) -> list[str]:
    return [item.key for item in items if isinstance(item, Sample)]


class Forward(io.RawIOBase):
    """A stream that gives few bytes at a time and cannot go back."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data, self._most = io.BytesIO(data), most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._most) if size >= 0 else self._most)


KEYS = st.text("abz09_é/", min_size=1, max_size=40).filter(lambda key: key.strip("/") == key)
MEMBERS = st.dictionaries(st.sampled_from(["jpg", "txt", "archive.json"]), st.binary(), min_size=1)


def parsed(parse: Callable[[bytes, int], Entry], block: bytes) -> Entry | str:
    try:
        return parse(block, 0)
    except DamageError as damage:
        return str(damage)


@settings(max_examples=300)
@given(
    name=st.text("ab/é", min_size=1, max_size=130),
    size=st.integers(0, 2**34),
    owner=st.sampled_from([0, 1000, 2**21, 2**22]),
    layout=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    place=st.integers(0, 511),
    value=st.sampled_from(b"\0 /0789aLx\x80\xff"),
    mended=st.booleans(),
)
def test_header_is_what_tarfile_reads_in_it_whatever_byte_is_damaged(
    name: str, size: int, owner: int, layout: int, place: int, value: int, mended: bool
) -> None:
    info = header(name, size=size, uid=owner, gid=owner)
    try:
        whole = info.tobuf(layout)
    except ValueError:  # what this layout cannot hold
        return
    block = bytearray(whole[-512:])
    assert parsed(tar_entries._parse, bytes(block)) == parsed(tar_entries._any, bytes(block))
    block[place] = value
    if mended:
        counted = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        block[148:156] = b"%06o\0 " % counted
    assert parsed(tar_entries._parse, bytes(block)) == parsed(tar_entries._any, bytes(block))


def test_headers_that_are_written_here_are_plain_ones() -> None:
    block = written([Sample("a/b", CAT)])[:512]
    assert tar_entries._plain_file(block) == Entry("a/b.jpg", tarfile.REGTYPE, len(CAT["jpg"]))


@settings(max_examples=40)
@given(st.dictionaries(st.one_of(KEYS, KEYS.map(lambda key: key * 9)), MEMBERS, min_size=1, max_size=4))
def test_tar_written_and_read_gives_the_samples_back(members_of: dict[str, dict[str, bytes]]) -> None:
    samples = [Sample(key, members) for key, members in members_of.items()]
    assert read(written(samples)) == samples


def test_write_tar_twice_gives_the_same_bytes_without_owner_or_time() -> None:
    data = written([Sample("a", CAT), Sample("b", dict(reversed(DOG.items())))])
    assert data == written([Sample("a", dict(reversed(CAT.items()))), Sample("b", DOG)])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}
        assert tar.getnames() == ["a.jpg", "a.txt", "b.jpg", "b.txt"]


@pytest.mark.parametrize("key", ["a.b", "/a", "../a", "./a", "", "a/", "a\nb"])
def test_write_tar_key_that_would_not_be_read_back_raises(key: str) -> None:
    with pytest.raises(ValueError, match="would not be read back"):
        written([Sample(key, CAT)])


@pytest.mark.parametrize("extension", ["", "JPG", "x/y"])
def test_write_tar_extension_that_would_not_be_read_back_raises(extension: str) -> None:
    with pytest.raises(ValueError, match="would not be read back"):
        written([Sample("a", {extension: b""})])


def test_write_tar_repeated_key_raises() -> None:
    with pytest.raises(ValueError, match="'a' comes twice"):
        written([Sample("a", CAT), Sample("a", DOG)])


def test_read_tar_groups_as_webdataset_does() -> None:
    names = ["x/1.jpg", "x/1.TXT", "y.z/1.jpg", "2.seg.png", "2.archive.json", "3.jpg"]
    data = tar_of([(name, name.encode()) for name in names])
    assert [(item.key, sorted(item.members)) for item in read(data) if isinstance(item, Sample)] == [
        ("x/1", ["jpg", "txt"]),
        ("y.z/1", ["jpg"]),
        ("2", ["archive.json", "seg.png"]),
        ("3", ["jpg"]),
    ]


def test_read_tar_names_made_by_tar_of_a_folder_lose_the_leading_dot() -> None:
    folder = header("./", type=tarfile.DIRTYPE)
    assert read(tar_of([(folder, b""), ("./a.jpg", b"x")])) == [Sample("a", {"jpg": b"x"})]


def test_read_tar_members_that_belong_to_no_sample_are_passed_over() -> None:
    folder = header("a.d", type=tarfile.DIRTYPE)
    strays: list[tuple[str | tarfile.TarInfo, bytes]] = [("README", b"x"), (".DS_Store", b"x"), ("a.", b"x")]
    assert read(tar_of([*strays, (folder, b""), ("1.txt", b"x")])) == [Sample("1", {"txt": b"x"})]


def test_read_tar_with_extensions_keeps_only_those_but_every_sample() -> None:
    data = tar_of([("1.jpg", b"x"), ("1.json", b"{}"), ("2.json", b"{}")])
    assert read(data, ("jpg",)) == [Sample("1", {"jpg": b"x"}), Sample("2", {})]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_read_tar_long_name_in_each_format_is_whole(format_: int) -> None:
    length = 90 if format_ == tarfile.USTAR_FORMAT else 300
    key = "d" * length + "/" + "é" * 40
    data = tar_of([(f"{key}.txt", b"x"), ("2.txt", b"y")], format=format_)
    assert keys(read(data)) == [key, "2"]


def test_read_tar_global_pax_header_is_ignored() -> None:
    data = tar_of([("1.txt", b"x")], format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by hand"})
    assert read(data) == [Sample("1", {"txt": b"x"})]


def test_read_tar_name_that_is_not_utf8_is_escaped() -> None:
    data = tar_of([(b"caf\xe9.txt".decode("latin-1"), b"x")], format=tarfile.GNU_FORMAT, encoding="latin-1")
    (sample,) = read(data)
    assert sample == Sample("caf\\xe9", {"txt": b"x"})
    assert sample.key.encode("utf-8")


def test_read_tar_gzipped_and_read_in_dribbles_gives_the_same_samples() -> None:
    data = written([Sample("a", CAT), Sample("b", DOG)])
    for form in (data, gzip.compress(data)):
        assert list(read_tar(Forward(form, most=700))) == [Sample("a", CAT), Sample("b", DOG)]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_read_tar_truncated_anywhere_keeps_what_is_whole_and_says_so(compress: Any) -> None:
    samples = [Sample("a", CAT), Sample("b", DOG)]
    data = compress(written(samples))
    end = len(data) - 1 if compress is gzip.compress else data.rindex(b"a dog") + 512
    for cut in range(2, end, 37):
        *before, last = read(data[:cut])
        assert isinstance(last, Rejection)
        assert last.reason == ("tar_unreadable" if cut < 512 and compress is bytes else "tar_truncated")
        assert keys(before) in ([], ["a"], ["a", "b"])
        assert last.key not in keys(before)
        for item, sample in zip(before, samples, strict=False):
            assert isinstance(item, Sample)
            assert item.members.items() <= sample.members.items()


def test_read_tar_truncated_inside_a_member_rejects_its_sample_only() -> None:
    data = written([Sample("a", CAT), Sample("b", DOG)])
    cut = data.index(b"a dog") + 100
    items = read(data[:cut])
    assert items[0] == Sample("a", CAT)
    assert faults(items) == [("b", "tar_truncated")]
    assert len(items) == 2


def test_read_tar_truncated_between_two_samples_keeps_the_first() -> None:
    data = written([Sample("a", CAT), Sample("b", DOG)])
    items = read(data[: data.index(b"b.jpg")])
    assert items[0] == Sample("a", CAT)
    assert faults(items) == [("", "tar_truncated")]


@pytest.mark.parametrize(
    "data", [b"<html>no such file</html>", b"\x89PNG" * 500, b"\x1f\x8b" + b"junk" * 300]
)
def test_read_tar_of_something_else_is_unreadable(data: bytes) -> None:
    assert faults(read(data)) == [("", "tar_unreadable")]


def test_read_tar_header_damaged_midway_keeps_what_came_before() -> None:
    data = bytearray(written([Sample("a", CAT), Sample("b", DOG)]))
    data[data.index(b"b.jpg") + 110] ^= 1
    items = read(bytes(data))
    assert items[0] == Sample("a", CAT)
    assert faults(items) == [("", "tar_unreadable")]


def test_read_tar_gzip_damaged_midway_is_a_rejection() -> None:
    data = bytearray(gzip.compress(written([Sample("a", CAT)])))
    data[-6] ^= 1  # its checksum
    assert faults(read(bytes(data))) == [("", "tar_unreadable")]


@pytest.mark.parametrize(
    "data",
    [b"", tar_of([]), tar_of([("README", b"x")]), gzip.compress(tar_of([]), mtime=0)],
    ids=["nothing", "no entry", "no sample", "no entry, compressed"],
)
def test_read_tar_without_samples_is_one_rejection(data: bytes) -> None:
    assert faults(read(data)) == [("", "tar_empty")]


def test_read_tar_joined_end_to_end_reports_the_rest() -> None:
    data = written([Sample("a", CAT)]) + written([Sample("b", DOG)])
    assert faults(read(data)) == [("", "tar_trailing_data")]
    assert keys(read(data)) == ["a"]


def test_read_tar_key_met_again_is_rejected_and_the_first_stands() -> None:
    data = tar_of([("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3"), ("a.jpg", b"4")])
    items = read(data)
    assert items[:2] == [Sample("a", {"txt": b"1"}), Sample("b", {"txt": b"2"})]
    assert faults(items) == [("a", "duplicate_key")]


def test_read_tar_extension_repeated_in_a_sample_keeps_the_first() -> None:
    items = read(tar_of([("a.txt", b"1"), ("a.TXT", b"2"), ("a.jpg", b"3")]))
    assert items[0] == Sample("a", {"txt": b"1", "jpg": b"3"})
    assert faults(items) == [("a", "duplicate_key")]


@pytest.mark.parametrize(
    "name",
    ["/etc/a.txt", "../a.txt", "x/../../a.txt", "x\\..\\a.txt", "C:\\a.txt", "a\nb.txt", "a/...txt/../b.txt"],
)
def test_read_tar_unsafe_name_is_rejected_and_the_rest_is_read(name: str) -> None:
    items = read(tar_of([(name, b"x"), ("ok.txt", b"y")]))
    assert [reason for _, reason in faults(items)] == ["unsafe_name"]
    assert keys(items) == ["ok"]


def test_read_tar_dots_that_do_not_climb_are_safe() -> None:
    assert keys(read(tar_of([("a../b.txt", b"x"), ("..c/d.txt", b"x")]))) == ["a../b", "..c/d"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_read_tar_link_or_device_rejects_its_sample(kind: bytes) -> None:
    special = header("a.jpg", type=kind, linkname="/etc/passwd")
    items = read(tar_of([(special, b""), ("a.txt", b"x"), ("b.txt", b"y")]))
    assert faults(items) == [("a", "not_a_file")]
    assert keys(items) == ["b"]


def test_read_tar_link_with_an_extension_nobody_wants_does_no_harm() -> None:
    link = header("a.png", type=tarfile.SYMTYPE, linkname="a.jpg")
    assert read(tar_of([("a.jpg", b"x"), (link, b"")]), ("jpg",)) == [Sample("a", {"jpg": b"x"})]


def test_read_tar_over_large_member_is_skipped_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 1000)
    items = read(tar_of([("a.jpg", bytes(5000)), ("a.txt", b"x"), ("b.jpg", bytes(1000))]))
    assert faults(items) == [("a", "member_too_large")]
    assert keys(items) == ["b"]


def test_read_tar_size_beyond_the_file_is_truncation_without_allocating_it() -> None:
    huge = header("a.jpg", size=2**40)
    data = huge.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    assert faults(read(data)) == [("a", "tar_truncated")]


def test_read_tar_extended_header_that_claims_gigabytes_is_refused() -> None:
    claim = header("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=2**33)
    assert faults(read(claim.tobuf(tarfile.GNU_FORMAT) + bytes(1024))) == [("", "tar_unreadable")]


@pytest.mark.parametrize("records", [b"nonsense", b"99 path=a\n", b"12 size=-1\n\n", b"13 size=1e9\n\n"])
def test_read_tar_malformed_pax_header_is_refused(records: bytes) -> None:
    extended = header("x", type=tarfile.XHDTYPE, size=len(records))
    entry = header("a.txt", size=1).tobuf() + b"x".ljust(512, b"\0")
    data = extended.tobuf() + records.ljust(512, b"\0") + entry + bytes(1024)
    assert faults(read(data)) == [("", "tar_unreadable")]


def test_read_tar_fault_of_the_storage_is_not_swallowed() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 1024:
                raise ConnectionResetError("gone")
            return super().read(size)

    with pytest.raises(ConnectionResetError):
        list(read_tar(Failing(written([Sample("a", CAT)]))))
