"""Stage ``corpus``: which image–caption pairs there are, and why the others were turned away.

A source is a set of WebDataset tars, read where they lie; or something the stage first writes as tars into
its artifact: rendered scenes, a folder in COCO's layout, the images that a table lists. Whatever the source,
each pair of the corpus is either a row of ``samples`` or a row of ``quarantine``.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa

from curation.captions import TEXTS, CaptionLimits, Captions, read_captions
from curation.images import Fault, ImageFacts, ImageLimits, inspect_image
from curation.sources import TARS, Scenes, Source, coco_files, coco_tar, expand_urls, scene_shards, scene_tar
from curation.tables import PairTable, lost_pairs, sidecar, table_files, table_shards, table_tar
from storage.digest import combined, digest_files
from storage.errors import ConfigError, InputError
from storage.files import Folder
from storage.growth import DIGESTS
from storage.reader import IMAGE_EXTENSIONS, image_bytes, open_tar
from storage.schemas import SCHEMAS, table_of
from storage.stage import Job, Output, ShardFunction, Stage, file_stem
from storage.tars import Rejection, Sample, read_tar

EXTENSIONS = (*IMAGE_EXTENSIONS, *TEXTS, "json")
Row = dict[str, Any]


@dataclass(frozen=True)
class CorpusConfig:
    """Named sources, and what an acceptable pair is."""

    sources: tuple[Source, ...] = ()
    images: ImageLimits = field(default_factory=ImageLimits)
    captions: CaptionLimits = field(default_factory=CaptionLimits)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ConfigError(f"corpus sources need different names, got {names}")


def shard_locations(config: CorpusConfig) -> dict[str, str]:
    """Shard name -> URL of the tar, for sources that are read where they lie.

    Raises:
        InputError: for a pattern without a match, or two tars of one name in one source.
    """
    found: dict[str, str] = {}
    for source in (source for source in config.sources if source.kind in TARS):
        for url in expand_urls(source.urls):
            shard = f"{source.name}/{url.rsplit('/', 1)[-1].split('.')[0]}"
            if shard in found:
                raise InputError(
                    f"'{found[shard]}' and '{url}' would both be '{shard}'; make them two sources"
                )
            found[shard] = url
    return found


def tar_locations(config: CorpusConfig, corpus_url: str) -> dict[str, str]:
    """Shard name -> URL of the tar, also for those that the stage packed into its artifact."""
    plan = _shard_plan(config)
    return {s: at if isinstance(at, str) else f"{corpus_url}/{file_stem(s)}.tar" for s, at in plan.items()}


def corpus_identity(config: CorpusConfig, store: Folder) -> dict[str, str]:
    """Digests of the bytes a corpus is made of, as stage inputs."""
    locations = shard_locations(config)
    digests = digest_files(list(locations.values()), store)
    identity = {shard: digests[url] for shard, url in locations.items()}
    for source in (source for source in config.sources if source.kind == "coco"):
        annotations, images = coco_files(source.urls[0])
        files = digest_files([str(path) for path in (annotations, *images)], store)
        identity[f"{source.name}/00000"] = combined(list(files.values()))
    for shard, (table, start) in _table_shards(config).items():
        files = digest_files([table.url, *table_files(table, start)], store)
        identity[shard] = combined([str(start), *files.values()])
    sidecars = {s: sidecar(url) for s, url in locations.items() if _kind(config, s) == "img2dataset"}
    beside = digest_files(list(sidecars.values()), store)
    return identity | {shard: combined([identity[shard], beside[url]]) for shard, url in sidecars.items()}


def _kind(config: CorpusConfig, shard: str) -> str:
    return next(source.kind for source in config.sources if source.name == shard.partition("/")[0])


def _table_shards(config: CorpusConfig) -> dict[str, tuple[PairTable, int]]:
    return {
        f"{source.name}/{stem}": place
        for source in config.sources
        if source.kind == "table"
        for stem, place in table_shards(expand_urls(source.urls)).items()
    }


def build_corpus(job: Job[CorpusConfig]) -> None:
    """Stage ``corpus``: validates every pair; writes ``samples``, ``quarantine`` and ``truth``."""
    plan = _shard_plan(job.config)
    job.map_shards(partial(_make_shard_function, job.config, plan), list(plan))


def _shard_plan(config: CorpusConfig) -> dict[str, str | Callable[[], bytes]]:
    """Shard -> the URL of its tar, or what makes it: scenes, a folder or part of a table to pack."""
    plan: dict[str, str | Callable[[], bytes]] = dict(shard_locations(config))
    plan |= {shard: partial(table_tar, *place) for shard, place in _table_shards(config).items()}
    for source in config.sources:
        if source.kind == "scenes":
            scenes = cast("Scenes", source.scenes)
            shards = scene_shards(scenes)
            plan |= {f"{source.name}/{stem}": partial(scene_tar, scenes, i) for stem, i in shards.items()}
        elif source.kind == "coco":
            plan[f"{source.name}/00000"] = partial(coco_tar, source.urls[0])
    return plan


def _make_shard_function(
    config: CorpusConfig, plan: Mapping[str, str | Callable[[], bytes]]
) -> ShardFunction:
    return lambda shard: _build_shard(config, shard, plan[shard])


def _build_shard(config: CorpusConfig, shard: str, origin: str | Callable[[], bytes]) -> Output:
    if callable(origin):
        made = origin()
        output = validate_tar(config, shard, io.BytesIO(made))
        output.files[f"{file_stem(shard)}.tar"] = (made, output.kept)
        return output
    with open_tar(origin, shard) as stream:
        output = validate_tar(config, shard, stream)
    return _with_lost(output, shard, origin) if _kind(config, shard) == "img2dataset" else output


def _with_lost(output: Output, shard: str, url: str) -> Output:
    """Adds the pairs that the tar's table lists and the tar lacks: nothing is lost in silence."""
    met = {*output.tables["samples"]["key"].to_pylist(), *(row["key"] for row in output.quarantine)}
    lost = [_fault(shard, key, fault) for key, fault in lost_pairs(url, met).items()]
    return replace(output, quarantine=output.quarantine + lost, seen=output.seen + len(lost))


def validate_tar(config: CorpusConfig, shard: str, stream: BinaryIO) -> Output:
    """Accepts or rejects every sample of a tar.

    Returns:
        tables ``samples``, ``captions`` (where all of a sample's are used) and ``truth`` (for samples whose
        json lists ``concepts``), and the quarantine. Every sample met is in ``samples`` or in the
        quarantine: seen = kept + quarantined.
    """
    rows, faults = [], []
    for item in read_tar(stream, EXTENSIONS):
        row, fault = _judge(config, shard, item)
        rows += [row] if row else []
        faults += [fault] if fault else []
    tables, facts = {"samples": _table("samples", rows)}, {}
    if config.captions.use == "all":
        tables["captions"] = _table("captions", rows)
        facts["captions"] = float(sum(len(row["captions"]) for row in rows))
        facts["captions_left_out"] = float(sum(row["left_out"] for row in rows))
    if truth := [row for row in rows if row["classes"] is not None]:
        tables["truth"] = _table("truth", truth)
    return Output(tables, quarantine=faults, seen=len(rows) + len(faults), kept=len(rows), facts=facts)


def _table(name: str, rows: list[Row]) -> pa.Table:
    return table_of(name, {column: [row[column] for row in rows] for column in SCHEMAS[name].names})


def _judge(config: CorpusConfig, shard: str, item: Sample | Rejection) -> tuple[Row | None, Row | None]:
    """A row of ``samples`` or a row of ``quarantine``."""
    if isinstance(item, Rejection):
        return None, _fault(shard, item.key, Fault(item.reason, item.detail))
    data = image_bytes(item)
    if data is None:
        return None, _fault(shard, item.key, Fault("image_missing", f"members: {sorted(item.members)}"))
    facts, captions = inspect_image(data, config.images), read_captions(item.members, config.captions)
    if isinstance(facts, Fault):
        return None, _fault(shard, item.key, facts)
    if isinstance(captions, Fault):
        return None, _fault(shard, item.key, captions)
    return _sample_row(shard, item, data, facts, captions), None


def _sample_row(shard: str, item: Sample, data: bytes, facts: ImageFacts, captions: Captions) -> Row:
    return {
        "sample_id": f"{shard}/{item.key}",
        "shard": shard,
        "key": item.key,
        "caption": captions.texts[0],
        "captions": captions.texts,
        "left_out": captions.left_out,
        "width": facts.width,
        "height": facts.height,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "classes": _true_concepts(item),
    }


def _true_concepts(item: Sample) -> list[str] | None:
    """The ``concepts`` of the sample's json: what is known to be in the image, where it is known."""
    try:
        found = json.loads(item.members.get("json", b"null"))
    except ValueError:
        return None
    concepts = found.get("concepts") if isinstance(found, dict) else None
    return [str(name) for name in concepts] if isinstance(concepts, list) else None


def _fault(shard: str, key: str, fault: Fault) -> Row:
    sample_id = f"{shard}/{key}" if key else shard
    return {"sample_id": sample_id, "key": key, "reason": fault.reason, "detail": fault.detail}


CORPUS = Stage("corpus", 2, build_corpus, corpus_identity, by_shard=DIGESTS)
