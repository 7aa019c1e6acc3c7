"""Stage ``recall``: which of the classes an image truly shows its caption names, and its archive."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from evaluation import classes
from evaluation.benchmarks import classes_present, coco_object
from evaluation.concepts import class_lookup, concept_metrics
from storage.artifact import Artifact
from storage.digest import combined, digest_files
from storage.errors import ConfigError, InputError
from storage.files import Folder
from storage.schemas import table_of
from storage.stage import Job, Output, Stage


@dataclass(frozen=True)
class RecallConfig:
    """Where the truth comes from."""

    truth: Literal["corpus", "coco"] = "corpus"  # concepts in the samples' json, or masks of a COCO folder
    source: str = ""  # of the corpus; all of them when empty
    path: str = field(default="", metadata={"identity": False})  # the COCO folder
    m: int = 5  # concepts of an archive that count
    synonyms: bool = True  # a class is named by its synonyms too (COCO)


def recall_identity(config: RecallConfig, store: Folder) -> dict[str, str]:
    """Digest of the masks the truth is read from, as a stage input."""
    if config.truth == "corpus":
        return {}
    masks = [str(image.mask.path) for image in coco_object(Path(config.path)).images if image.mask]
    return {"masks": combined(list(digest_files(masks, store).values()))}


def measure_recall(job: Job[RecallConfig]) -> None:
    """Stage ``recall``: recall and precision of captions and archives, as facts and a table per image."""
    truth, lookup = _truth(job)
    named = _caption_concepts(job.artifact("mentions"), job.artifact("vocabulary"), truth)
    ranked = _archive_concepts(job.artifact("archive"), truth)
    ids = [sample_id for sample_id in truth if sample_id in named and sample_id in ranked]
    if not ids:
        raise InputError("no image of the corpus has known classes; set recall.truth or leave the stage out")
    found = concept_metrics(
        [truth[i] for i in ids], [named[i] for i in ids], [ranked[i] for i in ids], lookup, job.config.m
    )
    facts = {name: float(value) for name, value in asdict(found).items()}
    table = table_of("truth", {"sample_id": ids, "classes": [sorted(truth[i]) for i in ids]})
    left_out = [_unmeasured(sample_id) for sample_id in truth if sample_id not in set(ids)]
    job.write(Output({"truth": table}, quarantine=left_out, seen=len(truth), kept=len(ids), facts=facts))


def _unmeasured(sample_id: str) -> dict[str, str]:
    key = sample_id.split("/", 2)[-1]
    return {"sample_id": sample_id, "key": key, "reason": "not_archived", "detail": "it has no archive"}


def _truth(job: Job[RecallConfig]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """True classes by sample id, and the class each concept name stands for."""
    corpus = job.artifact("corpus")
    if job.config.truth == "corpus":
        rows = corpus.read("truth").to_pydict()
        found = dict(zip(rows["sample_id"], map(set, rows["classes"]), strict=True))
        names = sorted(set().union(*found.values()))
        return _of_source(found, job.config.source), {name: name for name in names}
    lookup = class_lookup(classes.COCO_OBJECT, classes.COCO_SYNONYMS if job.config.synonyms else None)
    return _coco_truth(job, corpus), lookup


def _of_source(found: dict[str, set[str]], source: str) -> dict[str, set[str]]:
    return {name: seen for name, seen in found.items() if not source or name.split("/")[0] == source}


def _coco_truth(job: Job[RecallConfig], corpus: Artifact) -> dict[str, set[str]]:
    if not job.config.source:
        raise ConfigError("recall.truth 'coco' needs recall.source, the corpus source with COCO's images")
    present = classes_present(coco_object(Path(job.config.path))).classes
    rows = corpus.read("samples", columns=["sample_id", "key"]).to_pydict()
    keys = {
        k: i
        for i, k in zip(rows["sample_id"], rows["key"], strict=True)
        if i.startswith(job.config.source + "/")
    }
    return {keys[key]: set(seen) for key, seen in present.items() if key in keys}


def _caption_concepts(mentions: Artifact, vocabulary: Artifact, truth: dict[str, Any]) -> dict[str, set[str]]:
    names = vocabulary.read("concepts", columns=["name"])["name"].to_pylist()
    rows = _rows(mentions.read("mentions"), "concept_ids", truth)
    return {sample_id: {names[concept] for concept in concepts} for sample_id, concepts in rows.items()}


def _archive_concepts(archive: Artifact, truth: dict[str, Any]) -> dict[str, list[str]]:
    rows = _rows(archive.read("archives"), "concepts", truth)
    return {sample_id: [concept["name"] for concept in concepts] for sample_id, concepts in rows.items()}


def _rows(table: pa.Table, column: str, wanted: dict[str, Any]) -> dict[str, list[Any]]:
    kept = table.filter(pc.is_in(table["sample_id"], pa.array(list(wanted), pa.string())))
    return dict(zip(kept["sample_id"].to_pylist(), kept[column].to_pylist(), strict=True))


RECALL = Stage("recall", 1, measure_recall, recall_identity)
