"""Which training of region recognition helps: settings, nouns and seeds, measured on the same regions.

``python -m benchmarks.recognition_study STORE configs/flickr8k.toml BENCHMARK`` takes the artifacts of a run
(``cocu run … --until regions``; BENCHMARK is voc or coco_object), and keeps what it trains in the same store.
The tower before the head is frozen, so an image passes it once for all variants. Settings are chosen on
COCO-Object or on captions; VOC is reported, never chosen by.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from curation.encoder import load_encoder
from evaluation.benchmarks import Benchmark
from evaluation.calibration import CalibrationConfig
from evaluation.evaluate import BenchmarkConfig, EvaluateConfig, open_benchmark, protocol_of
from evaluation.measure import measure
from evaluation.metrics import Counts, summary
from evaluation.predict import predict
from evaluation.segmenters import build_segmenter
from flows.config import Config, load_config
from flows.plan import Plan
from flows.run import declared, make_runtime
from storage.artifact import Artifact
from storage.stage import materialize
from training.recognition import RegionSegmenter
from training.train import TRAIN, GroupingTraining

SEEDS = 3
KEYS = ("miou_present", "miou", "pixel_accuracy")
PLAIN, RATE = {"keep": 0.0, "alike": 1.0}, 3e-4  # the loss as it was published
NOT_CALIBRATED = CalibrationConfig()
BY_CAPTIONS = CalibrationConfig("captions", background=1.0)


@dataclass(frozen=True)
class Variant:
    """One row: a training (none: the untrained encoder), and how its regions are named."""

    name: str
    training: GroupingTraining | None
    calibration: CalibrationConfig = NOT_CALIBRATED


def variants(base: GroupingTraining) -> Iterator[Variant]:
    """The rows."""
    sources = base.sources
    standard = CalibrationConfig("standard", sources)
    captions = replace(BY_CAPTIONS, sources=sources)
    yield Variant("untrained", None)
    yield Variant("untrained, standardised", None, standard)
    yield Variant("untrained, calibrated by captions", None, captions)
    for kind, training in (("plain", _with(base, PLAIN, RATE)), ("as configured", base)):
        yield Variant(f"{kind}: caption", replace(training, nouns="caption"))
        yield Variant(f"{kind}: archive", replace(training, nouns="archive", with_caption=False))
        yield Variant(f"{kind}: both", replace(training, nouns="archive"))
    caption, both = replace(base, nouns="caption"), replace(base, nouns="archive")
    yield Variant("caption, contrast both ways", _with(caption, {"both_ways": True}))
    yield Variant("caption, standardised", caption, standard)
    yield Variant("caption, calibrated by captions", caption, captions)
    yield Variant("both, calibrated by captions", both, captions)


def _with(training: GroupingTraining, recognition: Mapping[str, Any], rate: float = 0.0) -> GroupingTraining:
    loop = training.loop
    if rate:
        loop = replace(loop, optim=replace(loop.optim, rate=rate))
    return replace(training, recognition=replace(training.recognition, **recognition), loop=loop)


class SharedPass:
    """Lets segmenters of one frozen tower see an image's maps and regions that the first has computed."""

    def __init__(self, first: RegionSegmenter) -> None:
        self.dense, self.group = first.tower.dense, first.regions
        self.maps: Tensor | None = None
        self.masks: Tensor | None = None

    def forget(self) -> None:
        """Before the next image."""
        self.maps = self.masks = None

    def lend(self, segmenter: RegionSegmenter) -> None:
        """Puts what is remembered in the place of what would be computed."""
        segmenter.tower.dense = self._dense  # type: ignore[method-assign]
        segmenter.regions = self._regions  # type: ignore[method-assign]

    def _dense(self, image_NCHW: Tensor) -> Tensor:
        if self.maps is None:
            self.maps = self.dense(image_NCHW)
        return self.maps

    def _regions(self, features_NChw: Tensor) -> Tensor:
        if self.masks is None:
            self.masks = self.group(features_NChw)
        return self.masks


@dataclass(frozen=True)
class Study:
    """A run's artifacts, and the benchmark to measure on."""

    settings: Config
    plan: Plan
    asked: BenchmarkConfig

    def inputs(self, training: GroupingTraining) -> dict[str, Artifact]:
        """What training reads, and naming is calibrated by."""
        found = {node.stage.name: node.artifact for node in self.plan.nodes}
        curated = {name: found[name] for name in ("corpus", "vocabulary", "mentions", "archive")}
        return {"encoder": found["encoder"], "regions": found["regions"], **training.inputs(curated)}

    def train(self, training: GroupingTraining, seed: int) -> Artifact:
        """Trains, or takes what is in the store."""
        training = replace(training, loop=replace(training.loop, seed=seed))
        runtime = replace(make_runtime("local", 1, "cpu"), locations=self.plan.locations)
        return materialize(TRAIN, training, self.inputs(training), self.plan.store, runtime)

    def segmenters(self) -> Iterator[tuple[str, RegionSegmenter]]:
        """One of each variant and seed; untrained ones have no seed."""
        assert self.settings.train.grouping is not None, "the config trains no region recognition"
        found = {node.stage.name: node.artifact for node in self.plan.nodes}
        encoder: Any = load_encoder(found["encoder"].local_folder(), "cpu")
        given = {name: found[name] for name in ("regions", "mentions", "vocabulary")}
        benchmark = open_benchmark(self.asked)
        groups, size = self.settings.groups.grouping, self.settings.regions.size
        for variant in variants(self.settings.train.grouping):
            asked = replace(self.asked, calibration=variant.calibration)
            name = "grouping" if variant.training else "grouping_untrained"
            config = EvaluateConfig.of(name, asked, groups, size)
            for seed in range(SEEDS if variant.training else 1):
                model = {"model": self.train(variant.training, seed)} if variant.training else {}
                built = build_segmenter(config, benchmark, protocol_of(asked), {**given, **model}, encoder)
                assert isinstance(built, RegionSegmenter)
                yield variant.name, built

    def counts(self) -> dict[str, list[Counts]]:
        """Confusion counts of every variant and seed."""
        benchmark, protocol = open_benchmark(self.asked), protocol_of(self.asked)
        built = list(self.segmenters())
        shared = SharedPass(built[0][1])
        for _, segmenter in built:
            shared.lend(segmenter)
        labels = len(benchmark.labels)
        totals = [np.zeros((labels, labels), np.int64) for _ in built]
        for image in track(benchmark.images, description=self.asked.name):
            shared.forget()
            for number, (_, segmenter) in enumerate(built):
                label = partial(predict, segmenter, protocol=protocol)
                totals[number] += measure([image], labels, label).confusion
        found: dict[str, list[Counts]] = {}
        for (name, _), total in zip(built, totals, strict=True):
            found.setdefault(name, []).append(total)
        return found


def told(benchmark: Benchmark, found: Mapping[str, list[Counts]]) -> Iterator[str]:
    """The rows of a table: mean over seeds and, where there are several, their standard deviation."""
    measured = f"{benchmark.name}, {len(benchmark.images)} images"
    yield f"| naming on {measured} | mIoU, present classes | all | pixels |"
    yield "|---|---|---|---|"
    for name, seeds in found.items():
        scores = [summary(counts) for counts in seeds]
        cells = [
            _cell([score[key] for score in scores]) for key in ("miou_present", "miou", "pixel_accuracy")
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def benchmark_config(settings: Config, name: str) -> BenchmarkConfig:
    """VOC as the config asks for it, or COCO-Object asked for in the same way."""
    voc = settings.evaluate.benchmarks[0].benchmark
    if name == "voc":
        return voc
    return replace(voc, name="coco_object", kind="coco_object", path=f"{os.environ['COCU_DATA']}/coco")


def main(store: str, config: str, name: str) -> None:
    """Prints the table."""
    torch.set_num_threads(os.cpu_count() or 1)
    settings = load_config(Path(config))
    _, plan = declared(settings, store)
    study = Study(settings, plan, benchmark_config(settings, name))
    for line in told(open_benchmark(study.asked), study.counts()):
        print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
