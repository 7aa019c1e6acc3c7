"""Stage ``preview``: what a segmenter sees in a few images, kept as pictures for people to look at.

Images of the curated corpus have no truth, those of the benchmark have; both are spread evenly, so that
every segmenter shows the same ones.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from PIL import Image

from evaluation.benchmarks import Benchmark
from evaluation.evaluate import EvaluateConfig, benchmark_identity, given, open_benchmark, protocol_of
from evaluation.labelled import LabelledImage, RejectedImage, UInt8Array
from evaluation.measure import Labeller
from evaluation.predict import predict
from evaluation.segmenters import build_segmenter
from storage.artifact import Artifact
from storage.files import Writer
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.stage import Job, Output, Stage
from storage.tars import Sample, read_tar, write_tar
from training.data import decode_image
from training.grouping import decode_label_png, encode_label_png

PICTURES, LABELS = "preview.tar", "labels.json"


@dataclass(frozen=True)
class PreviewConfig:
    """Which segmenter, and how much of what it sees is kept.

    Raises:
        ValueError: for the oracle, which labels no image whose truth is unknown.
    """

    segmenter: EvaluateConfig  # as it is measured: its classes, protocol and regions
    examples: int = 12  # images of the corpus, and as many of the benchmark
    side: int = 320  # pixels of a picture's longer side, at most

    def __post_init__(self) -> None:
        if self.segmenter.subject == "oracle":
            raise ValueError("the oracle cannot be previewed; give a trained or an untrained segmenter")


@dataclass(frozen=True)
class Picture:
    """One image as a segmenter sees it."""

    image_id: str  # sample_id in the corpus, or id in the benchmark
    labels_HW: UInt8Array  # indices into the names in ``labels.json``
    image: bytes | None = None  # JPEG; of benchmark images only, a corpus is at hand anyway
    truth_HW: UInt8Array | None = None


@dataclass(frozen=True)
class Preview:
    """What the stage has kept."""

    labels: tuple[str, ...]  # names, in the order of the label values
    corpus: list[Picture]
    benchmark: list[Picture]


def make_preview(job: Job[PreviewConfig]) -> None:
    """Stage ``preview``: label maps of some images of the corpus (where one is given) and the benchmark."""
    config = job.config
    benchmark = open_benchmark(config.segmenter.benchmark, job.optional("labelled"))
    label = _labeller(job, benchmark)
    positions = spread(len(benchmark.images), config.examples)
    images = [benchmark.images[position] for position in positions]
    samples, quarantine = [], []
    with job.runtime.progress(job.stage, len(images) + config.examples) as bar:
        for number, pixels_HWC in enumerate(_corpus_images(job)):
            samples.append(_sample(f"corpus/{number:05d}", *pixels_HWC, label, config.side))
            bar.advance()
        for number, image in enumerate(images):
            try:
                samples.append(_labelled_sample(f"benchmark/{number:05d}", image, label, config.side))
            except RejectedImage as fault:
                quarantine.append(_fault(image, fault))
            bar.advance()
    job.write(_output(benchmark, samples, quarantine))


def _labeller(job: Job[PreviewConfig], benchmark: Benchmark) -> Labeller:
    config = job.config.segmenter
    folder = str(job.artifact("encoder").local_folder())
    encoder = job.runtime.load_encoder(folder, job.runtime.device)
    protocol = protocol_of(config.benchmark)
    segmenter = build_segmenter(config, benchmark, protocol, given(job), encoder)
    return partial(predict, segmenter, protocol=protocol, device=encoder.device)


def spread(total: int, count: int) -> list[int]:
    """``count`` places among ``total``, evenly apart (all of them when there are fewer)."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def spread_samples(corpus: Artifact, count: int) -> dict[str, list[str]]:
    """Ids of ``count`` samples spread over a corpus, by shard; only their shards are read."""
    parts = corpus.parts("samples")
    ends = np.cumsum([part.rows for part in parts])
    chosen: dict[str, list[str]] = {}
    for position in spread(int(ends[-1]) if len(ends) else 0, count):
        number = int(np.searchsorted(ends, position, side="right"))
        part, row = parts[number], position - int(ends[number]) + parts[number].rows
        ids = corpus.read("samples", part.shard, ["sample_id"])["sample_id"]
        chosen.setdefault(part.shard, []).append(ids[row].as_py())
    return chosen


def spread_images(reader: CorpusReader, count: int) -> Iterator[tuple[str, bytes]]:
    """The chosen samples' ids and encoded images; a tar is left as soon as its own are found."""
    for shard, ids in spread_samples(reader.corpus, count).items():
        wanted = set(ids)
        for sample_id, sample in reader.members(shard, IMAGE_EXTENSIONS):
            if sample_id in wanted:
                wanted.discard(sample_id)
                yield sample_id, image_bytes(sample) or b""
            if not wanted:
                break


def _corpus_images(job: Job[PreviewConfig]) -> Iterator[tuple[str, UInt8Array]]:
    corpus = job.optional("corpus")
    if corpus is not None:
        for sample_id, data in spread_images(
            CorpusReader(corpus, job.runtime.locations), job.config.examples
        ):
            yield sample_id, decode_image(data)


def _sample(key: str, image_id: str, image_HWC: UInt8Array, label: Labeller, side: int) -> Sample:
    labels_HW = _reduced(label(image_HWC), side, cv2.INTER_NEAREST)
    return Sample(key, {"json": json.dumps({"id": image_id}).encode(), "png": encode_label_png(labels_HW)})


def _labelled_sample(key: str, image: LabelledImage, label: Labeller, side: int) -> Sample:
    image_HWC, truth_HW = image.load_image(), image.load_mask()
    sample = _sample(key, image.image_id, image_HWC, label, side)
    sample.members["jpg"] = _jpeg(_reduced(image_HWC, side, cv2.INTER_AREA))
    sample.members["truth.png"] = encode_label_png(_reduced(truth_HW, side, cv2.INTER_NEAREST))
    return sample


def _reduced(pixels: UInt8Array, side: int, way: int) -> UInt8Array:
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=way), np.uint8)


def _jpeg(image_HWC: UInt8Array) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image_HWC).save(sink, "JPEG", quality=88)
    return sink.getvalue()


def _fault(image: LabelledImage, fault: RejectedImage) -> dict[str, str]:
    name = image.image_id
    return {"sample_id": name, "key": name, "reason": fault.reason, "detail": fault.detail}


def _output(benchmark: Benchmark, samples: Sequence[Sample], quarantine: list[dict[str, str]]) -> Output:
    names = json.dumps({"labels": benchmark.labels}, ensure_ascii=False).encode()
    files: dict[str, tuple[bytes | Writer, int]] = {
        PICTURES: (lambda stream: write_tar(stream, samples), len(samples)),
        LABELS: (names, 0),
    }
    return Output(files=files, quarantine=quarantine, seen=len(samples) + len(quarantine), kept=len(samples))


def read_preview(artifact: Artifact) -> Preview:
    """The pictures of a ``preview`` artifact."""
    found: dict[str, list[Picture]] = {"corpus": [], "benchmark": []}
    with artifact.file(PICTURES).open("rb") as stream:
        for item in read_tar(stream):
            if isinstance(item, Sample):
                found[item.key.split("/")[0]].append(_picture(item.members))
    labels = json.loads(artifact.file(LABELS).read_bytes())["labels"]
    return Preview(tuple(labels), **found)


def _picture(members: dict[str, bytes]) -> Picture:
    truth = members.get("truth.png")
    return Picture(
        json.loads(members["json"])["id"],
        decode_label_png(members["png"]),
        members.get("jpg"),
        None if truth is None else decode_label_png(truth),
    )


PREVIEW = Stage("preview", 4, make_preview, lambda config, store: benchmark_identity(config.segmenter, store))
