"""Stage ``evaluate``: one segmenter on one benchmark.

Images are measured a few dozen at a time; each block is a part of its own (sparse confusion counts per
image), so an interrupted evaluation goes on where it stopped. The metrics are reduced from the parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from evaluation import classes
from evaluation.benchmarks import Benchmark, cityscapes, coco_object, prompt_names, shards, voc
from evaluation.calibration import CalibrationConfig
from evaluation.discriminants import DiscriminantConfig
from evaluation.labelled import LabelledImage
from evaluation.measure import Measurement
from evaluation.metrics import Counts, class_rows, summary
from evaluation.protocols import GROUPVIT, TCL, Protocol
from evaluation.segmenters import Subject, build_labeller
from storage.artifact import Artifact
from storage.digest import combined, digest_files
from storage.files import Folder
from storage.schemas import table_of
from storage.stage import Job, Output, ShardFunction, Stage, read_tables
from training.grouping import GroupingConfig

BLOCK = 32  # images of one part


@dataclass(frozen=True)
class BenchmarkConfig:
    """Labelled images, and how they are asked about."""

    name: str
    kind: Literal["voc", "coco_object", "cityscapes", "shards"]
    path: str = field(default="", metadata={"identity": False})  # folder of the layout; not for shards
    class_names: tuple[str, ...] = ()  # for shards: in the order of the masks' values
    protocol: Literal["groupvit", "tcl"] = "groupvit"
    short_side: int = 0  # pixels; 0 for the protocol's own
    window: int = 0
    stride: int = 0
    templates: tuple[str, ...] = ()  # prompts of the class names; the protocol's when empty
    synonyms: bool = False  # prompt classes with their synonyms too
    top_k: int = 0  # classes a picture may show, by its own vector; 0 for all (region naming)
    image_weight: float = 0.0  # of a class' cosine to the picture beside that to a region (region naming)
    background_bias: float = 0.0  # added to what the background's names score (region naming)
    border_weight: float = 0.0  # of how much of the picture's border a region has, for background
    region_size: int = 0  # pixels a window's regions are named at; 0: as in training (region naming)
    picture_size: int = 0  # pixels of a look at the whole picture; 0: its windows together (region naming)
    discriminants: DiscriminantConfig = field(default_factory=DiscriminantConfig)  # of region naming
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)  # of region naming
    limit: int = 0  # images, evenly spread; 0 for all


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and on what."""

    model: str  # name in tables, such as grouping_archive
    subject: Subject
    benchmark: BenchmarkConfig
    grouping: GroupingConfig = field(default_factory=GroupingConfig)  # regions at inference
    size: int = 224  # pixels a window is named at
    context: bool = True  # its regions see the window around them, as in training

    @property
    def learns_from_captions(self) -> bool:
        """Whether naming is told what the captions of the training images say of their regions."""
        asked = self.benchmark.calibration.kind != "none" or self.benchmark.discriminants.asked
        return asked and self.subject in ("grouping", "untrained")

    @staticmethod
    def of(
        model: str, benchmark: BenchmarkConfig, grouping: GroupingConfig, size: int, context: bool = True
    ) -> "EvaluateConfig":
        """The evaluation of a model by its name, which begins with its method, trained at such a size."""
        if model.startswith("groupvit"):
            return EvaluateConfig(model, "groupvit", benchmark)
        special: dict[str, Subject] = {"grouping_untrained": "untrained", "grouping_oracle": "oracle"}
        named_at = benchmark.region_size or size
        return EvaluateConfig(model, special.get(model, "grouping"), benchmark, grouping, named_at, context)


def class_names(config: BenchmarkConfig) -> tuple[str, ...]:
    """Names of a benchmark's classes, and their synonyms where it uses them; its files are not read."""
    own, more = {
        "voc": (classes.VOC, classes.VOC_SYNONYMS),
        "coco_object": (classes.COCO_OBJECT, classes.COCO_SYNONYMS),
        "cityscapes": (classes.CITYSCAPES, {}),
        "shards": (config.class_names, {}),
    }[config.kind]
    named = prompt_names(own, more if config.synonyms else None)
    return tuple(dict.fromkeys(name for names in named for name in names))


def protocol_of(config: BenchmarkConfig) -> Protocol:
    """The named protocol with the benchmark's exceptions."""
    base = {"groupvit": GROUPVIT, "tcl": TCL}[config.protocol]
    changes = {k: v for k in ("short_side", "window", "stride", "templates") if (v := getattr(config, k))}
    return replace(base, **changes)


def open_benchmark(config: BenchmarkConfig, labelled: Artifact | None = None) -> Benchmark:
    """The images of a benchmark, thinned to ``limit``.

    Raises:
        InputError: if the folder does not have the layout.
    """
    found = _whole_benchmark(config, labelled)
    step = max(1, len(found.images) // config.limit) if config.limit else 1
    return replace(found, images=list(found.images)[::step][: config.limit or None])


def _whole_benchmark(config: BenchmarkConfig, labelled: Artifact | None) -> Benchmark:
    if config.kind == "shards":
        assert labelled is not None, "a benchmark in shards is a corpus artifact"
        tars = [labelled.file(part.name) for part in labelled.parts(None)]
        return shards(config.name, tars, config.class_names)
    root = Path(config.path)
    if config.kind == "voc":
        return voc(root, classes.VOC_SYNONYMS if config.synonyms else None)
    if config.kind == "coco_object":
        return coco_object(root, classes.COCO_SYNONYMS if config.synonyms else None)
    return cityscapes(root)


def benchmark_identity(config: EvaluateConfig, store: Folder) -> dict[str, str]:
    """Digest of a benchmark's images and masks, as a stage input."""
    if config.benchmark.kind == "shards":
        return {}
    images = open_benchmark(config.benchmark).images
    files = [str(blob.path) for image in images for blob in (image.image, image.mask) if blob]
    digests = digest_files([file for file in files if Path(file).exists()], store)
    return {"images": combined(list(digests.values()))}


def evaluate(job: Job[EvaluateConfig]) -> None:
    """Stage ``evaluate``: sparse confusion counts per image, then the metrics of all."""
    labelled = job.optional("labelled")
    benchmark = open_benchmark(job.config.benchmark, labelled)
    blocks = [f"{job.config.benchmark.name}/{n:05d}" for n in range(-(-len(benchmark.images) // BLOCK))]
    folder = str(job.artifact("encoder").local_folder())
    load = partial(job.runtime.load_encoder, folder, job.runtime.device)
    make = partial(_make_block_function, job.config, labelled, given(job), load)
    job.map_shards(make, blocks)
    _reduce(job, benchmark)


def given(job: Job[Any]) -> dict[str, Artifact]:
    """Those of a job's inputs that a segmenter is built from."""
    found = {name: job.optional(name) for name in ("model", "regions", "mentions", "vocabulary")}
    return {name: artifact for name, artifact in found.items() if artifact}


def _make_block_function(
    config: EvaluateConfig, labelled: Artifact | None, given: Mapping[str, Artifact], load: Any
) -> ShardFunction:
    benchmark = open_benchmark(config.benchmark, labelled)
    protocol = protocol_of(config.benchmark)
    segment = build_labeller(config, benchmark, protocol, given, load)
    return lambda block: _measure_block(benchmark, segment, block)


def _measure_block(benchmark: Benchmark, segment: Any, block: str) -> Output:
    start = int(block.rsplit("/", 1)[-1]) * BLOCK
    images: Sequence[LabelledImage] = benchmark.images[start : start + BLOCK]
    measured = [(image.image_id, segment(image, len(benchmark.labels))) for image in images]
    quarantine = [
        {"sample_id": image_id, "key": image_id, "reason": fault.reason, "detail": fault.detail}
        for image_id, found in measured
        for fault in found.rejected
    ]
    kept = sum(found.measured for _, found in measured)
    table = _confusion_table(measured)
    return Output(tables={"confusion": table}, quarantine=quarantine, seen=len(images), kept=kept)


def _confusion_table(measured: Sequence[tuple[str, Measurement]]) -> pa.Table:
    rows = [(name, *np.nonzero(m.confusion), m.confusion[np.nonzero(m.confusion)]) for name, m in measured]
    columns = {
        "image_id": [name for name, truth, _, _ in rows for _ in truth],
        "truth": np.concatenate([truth for _, truth, _, _ in rows]).astype(np.int32),
        "predicted": np.concatenate([label for _, _, label, _ in rows]).astype(np.int32),
        "pixels": np.concatenate([pixels for *_, pixels in rows]).astype(np.int64),
    }
    return table_of("confusion", columns)


def _reduce(job: Job[EvaluateConfig], benchmark: Benchmark) -> None:
    counts = total_confusion(read_tables(job.folder, "confusion"), len(benchmark.labels))
    rows = class_rows(
        counts, benchmark.labels, benchmark.name, job.config.benchmark.protocol, job.config.model
    )
    present = counts.sum(1) > 0
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns["present"] = present.tolist()
    job.write(Output(tables={"metrics": table_of("metrics", columns)}, facts=summary(counts)))


def total_confusion(table: pa.Table, labels: int) -> Counts:
    """Dense confusion counts [C, C] of sparse rows."""
    counts = np.zeros((labels, labels), np.int64)
    truth, predicted = table["truth"].to_numpy(), table["predicted"].to_numpy()
    np.add.at(counts, (truth, predicted), table["pixels"].to_numpy())
    return counts


EVALUATE = Stage("evaluate", 4, evaluate, benchmark_identity)
