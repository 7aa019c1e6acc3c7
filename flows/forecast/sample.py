"""Some pairs of a corpus as tars of growing sizes: what a calibration works on.

Pairs come from the configured sources, read where they lie. What the corpus stage would first pack into tars
(scenes, a folder, a table) is timed on the way.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import fsspec

from curation.corpus import EXTENSIONS, CorpusConfig
from curation.sources import (
    TARS,
    Scenes,
    Source,
    coco_files,
    coco_samples,
    expand_urls,
    scene_samples,
    scene_shards,
)
from curation.tables import PairTable, table_samples, table_shards
from storage.errors import CocuError, ConfigError, InputError
from storage.reader import open_tar
from storage.tars import Sample, read_tar, write_tar

TARS_READ = 4  # of a source, spread over it
BLOCK = 512  # of a tar
LEAST = 2  # samples of a source


@dataclass(frozen=True)
class Extent:
    """How large a source is."""

    images: int
    shards: int
    how: str  # it is known


@dataclass
class Drawn:
    """A sample of a corpus, in tars of its own."""

    config: CorpusConfig  # of those tars
    sizes: dict[str, int]  # samples by shard
    images: int  # of the whole corpus
    shards: int
    basis: list[str] = field(default_factory=list)
    pack_seconds: float = 0.0  # of the whole corpus, for what is packed into tars first
    pack_bytes: float = 0.0

    @property
    def drawn(self) -> int:
        """Samples in all."""
        return sum(self.sizes.values())


def draw(config: CorpusConfig, sizes: Sequence[int], folder: Path, seconds: float) -> Drawn:
    """Writes tars of some samples of every source, in proportion.

    Args:
        config: of the corpus.
        sizes: samples of the tars of its largest source, as far as there are so many.
        folder: where the tars go.
        seconds: after which no other tar is begun.

    Raises:
        InputError: if a source cannot be read.
    """
    extents = {source.name: extent(source) for source in config.sources}
    largest = max(config.sources, key=lambda source: extents[source.name].images)
    found = Drawn(
        config=config,
        sizes={},
        images=0,
        shards=sum(e.shards for e in extents.values()),
    )
    _draw_source(found, largest, extents[largest.name], sizes, folder, seconds)
    part = found.drawn / extents[largest.name].images
    for source in (source for source in config.sources if source is not largest):
        count = max(LEAST, round(part * extents[source.name].images))
        _draw_source(found, source, extents[source.name], [count], folder, seconds)
    found.config = replace(config, sources=tuple(_in_folder(s, folder) for s in config.sources))
    return found


def _in_folder(source: Source, folder: Path) -> Source:
    return Source(source.name, "webdataset", (f"{folder}/{source.name}/*.tar",))


def _draw_source(
    found: Drawn, source: Source, known: Extent, sizes: Sequence[int], folder: Path, seconds: float
) -> None:
    """Writes the tars of one source, in the order of their names."""
    (folder / source.name).mkdir(parents=True)
    samples, started, before = _samples(source, sum(sizes)), time.perf_counter(), found.drawn
    written = 0
    for number, size in enumerate(sizes):
        path = folder / source.name / f"{number:05d}.tar"
        taken = list(islice(samples, size))
        spent = time.perf_counter() - started
        if taken:
            with path.open("wb") as stream:
                write_tar(stream, taken)
            found.sizes[f"{source.name}/{number:05d}"] = len(taken)
            written += path.stat().st_size
        if len(taken) < size or spent > seconds:
            break
    drawn = found.drawn - before
    images = max(known.images, drawn)  # the sizes of tars tell it roughly only
    found.images += images
    if not drawn:
        raise InputError(f"source '{source.name}' holds no sample to calibrate with; check its urls")
    spent = time.perf_counter() - started
    how = f"{drawn:,} of {images:,} pairs of '{source.name}' ({known.how})"
    if source.kind not in TARS:
        found.pack_seconds += spent / drawn * images
        found.pack_bytes += written / drawn * images
        how += f", made and packed in {spent:.2f} s"
    found.basis.append(how)


def _samples(source: Source, wanted: int) -> Iterator[Sample]:
    """Pairs of a source; of tars the first ones of some that are spread over it."""
    if source.kind == "scenes":
        scenes = source.scenes or Scenes()
        return scene_samples(scenes, range(scenes.count))
    if source.kind == "coco":
        return coco_samples(source.urls[0])
    if source.kind == "table":
        places = table_shards(expand_urls(source.urls)).values()
        return chain.from_iterable(table_samples(*place) for place in places)
    urls = expand_urls(source.urls)
    some = urls[:: max(1, len(urls) // TARS_READ)]
    each = -(-wanted // len(some))
    tars = (islice(_tar_samples(url), each) for url in some)
    return (replace(s, key=f"{n:07d}") for n, s in enumerate(chain.from_iterable(tars)))  # keys may repeat


def _tar_samples(url: str) -> Iterator[Sample]:
    with open_tar(url, url) as stream:
        yield from (item for item in read_tar(stream, EXTENSIONS) if isinstance(item, Sample))


def extent(source: Source) -> Extent:
    """How many pairs a source has: counted, or of tars estimated from their sizes.

    Raises:
        InputError: if it cannot be read.
    """
    if source.kind == "scenes":
        scenes = source.scenes or Scenes()
        return Extent(scenes.count, len(scene_shards(scenes)), "configured")
    if source.kind == "coco":
        return Extent(len(coco_files(source.urls[0])[1]), 1, "counted")
    if source.kind == "table":
        tables = [PairTable(url) for url in expand_urls(source.urls)]
        shards = len(table_shards(expand_urls(source.urls)))
        return Extent(sum(table.rows for table in tables), shards, "counted")
    urls = expand_urls(source.urls)
    whole = sum(_size(url) for url in urls)
    a_pair = _bytes_of_a_pair(urls[len(urls) // 2])
    return Extent(max(1, round(whole / a_pair)), len(urls), f"by the size of its {len(urls)} tars")


def _size(url: str) -> int:
    try:
        fs, path = fsspec.core.url_to_fs(url)
        return int(fs.size(path) or 0)
    except Exception as error:  # each file system has its own kinds
        raise InputError(f"cannot tell the size of '{url}' ({error}); give --images") from error


def _bytes_of_a_pair(url: str, enough: int = 100) -> float:
    """In a tar: every member has a header, and is filled up to whole blocks."""
    with open_tar(url, url) as stream:
        samples = [item for item in islice(read_tar(stream), enough) if isinstance(item, Sample)]
    if not samples:
        raise InputError(f"'{url}' holds no sample to calibrate with; check the source's urls")
    members = [len(data) for sample in samples for data in sample.members.values()]
    return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in members) / len(samples)


def draw_or_render(
    config: CorpusConfig, sizes: Sequence[int], folder: Path, seconds: float, images: int | None
) -> Drawn:
    """A sample of the corpus; rendered scenes where it cannot be read and its size is given.

    Raises:
        ConfigError: if it cannot be read and no number of images is given.
    """
    try:
        return draw(config, sizes, folder / "corpus", seconds)
    except (CocuError, OSError) as error:
        if images is None:
            raise ConfigError(
                f"the corpus cannot be read ({error}); with --images N rendered scenes stand in for it"
            ) from error
    scenes = Source("scenes", "scenes", scenes=Scenes(count=max(images, sum(sizes))))
    found = draw(replace(config, sources=(scenes,)), sizes, folder / "scenes", seconds)
    found.pack_seconds = found.pack_bytes = 0.0
    found.basis = [f"the corpus cannot be read: {found.drawn} rendered scenes of 64 pixels stand in for it"]
    return found
