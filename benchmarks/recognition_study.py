"""Which training of region recognition helps: settings, nouns and seeds, measured on the same regions.

``python -m benchmarks.recognition_study STORE configs/flickr8k.toml BENCHMARK [TRAINING …]`` takes the
artifacts of a run (``cocu run … --until regions``; BENCHMARK is voc or coco_object), and keeps what it
trains in the same store. TRAINING is a name of `trainings`, such as untrained or both; all by default.
The tower before the head is frozen, so an image passes it once for all variants. Settings are chosen on
COCO-Object or on captions; VOC is reported, never chosen by.
"""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from curation.encoder import load_encoder
from evaluation.benchmarks import Benchmark
from evaluation.calibration import CalibrationConfig
from evaluation.discriminants import DiscriminantConfig
from evaluation.evaluate import BenchmarkConfig, EvaluateConfig, open_benchmark, protocol_of
from evaluation.metrics import Counts, confusion_counts, summary
from evaluation.predict import PictureScores, score_picture
from evaluation.protocols import Protocol
from evaluation.segmenters import build_segmenter
from flows.config import Config, load_config
from flows.plan import Plan
from flows.run import declared, make_runtime
from storage.artifact import Artifact
from storage.stage import Stage, materialize
from training.features import unit_maps
from training.groups import REGIONS, RegionsConfig, normalised
from training.naming import RegionScores, RegionSegmenter, resized
from training.regions import RegionEncoder
from training.train import TRAIN, GroupingTraining

SEEDS = 3
SMALL = 224  # pixels of a window where a region takes a pass of its own: a quarter of the work
KEYS = ("miou_present", "miou", "pixel_accuracy")
PLAIN, RATE = {"keep": 0.0, "alike": 1.0}, 3e-4  # the loss as it was published
BY_REGIONS = {
    "image_weight": 0.0,
    "background_bias": 0.0,
    "discriminants": DiscriminantConfig(),
}  # regions alone: the picture only has its top k
LOG_ODDS = {
    "image_weight": 0.0,
    "background_bias": 1.0,
    "discriminants": DiscriminantConfig(),
}  # calibrated scores are no cosines


@dataclass(frozen=True)
class Variant:
    """One row: a training (none: the untrained encoder), and how its regions are named."""

    name: str
    training: GroupingTraining | None
    naming: Mapping[str, Any] = field(default_factory=dict)  # where it differs from the config's
    seen: RegionsConfig | None = None  # how regions are, in training and at inference; None: as configured


def variants(base: GroupingTraining, only: Collection[str] = ()) -> Iterator[Variant]:
    """The rows, of some trainings or of all."""
    for name, training in trainings(base):
        if only and name not in only:
            continue
        yield Variant(f"{name}, by regions alone", training, BY_REGIONS)
        yield Variant(name, training)
        if name in ("untrained", "caption", "archive", "both"):
            yield Variant(f"{name}, without discriminants", training, {"discriminants": DiscriminantConfig()})
            for context in (True, False):
                seen = RegionsConfig(size=SMALL, context=context)
                told = "with" if context else "without"
                yield Variant(f"{name}, {SMALL} px, {told} context", training, seen=seen)
    standard = CalibrationConfig("standard", base.sources)
    captions = CalibrationConfig("captions", base.sources)
    for name, training in (("untrained", None), ("caption", replace(base, nouns="caption"))):
        yield Variant(f"{name}, standardised", training, {"calibration": standard, **BY_REGIONS})
        yield Variant(f"{name}, calibrated by captions", training, {"calibration": captions, **LOG_ODDS})


def trainings(base: GroupingTraining) -> Iterator[tuple[str, GroupingTraining | None]]:
    """Nouns, and the settings of the loss."""
    yield "untrained", None
    for kind, training in (("plain: ", _with(base, PLAIN, RATE)), ("", base)):
        yield f"{kind}caption", replace(training, nouns="caption")
        yield f"{kind}archive", replace(training, nouns="archive", with_caption=False)
        yield f"{kind}both", replace(training, nouns="archive")
    caption = replace(base, nouns="caption")
    yield "caption, contrast both ways", _with(caption, {"both_ways": True})
    yield "caption, and whole captions", _with(caption, {"caption_weight": 1.0})
    yield "caption, all regions by softmax", _with(caption, {"pooling": "softmax"})


def _with(training: GroupingTraining, recognition: Mapping[str, Any], rate: float = 0.0) -> GroupingTraining:
    loop = training.loop
    if rate:
        loop = replace(loop, optim=replace(loop.optim, rate=rate))
    return replace(training, recognition=replace(training.recognition, **recognition), loop=loop)


class SharedPass:
    """Segmenters of one frozen tower look at a picture: its maps and regions are made once for all."""

    def __init__(self, first: RegionSegmenter, protocol: Protocol) -> None:
        self.first, self.protocol = first, protocol
        self.forget()

    def forget(self) -> None:
        """Before the next picture."""
        self.scored: PictureScores | None = None
        self.tokens: dict[RegionsConfig, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, window_NCHW: Tensor) -> RegionScores:
        """As the first segmenter, noting what all share."""
        self.window_NCHW, self.maps_NChw = window_NCHW, self.first.maps(window_NCHW)
        weight = self.first.grouping.position_weight
        self.labels_Nhw = self.first.regions(unit_maps(self.maps_NChw, weight))
        scores_NKC = self.first.pooled_scores(self.maps_NChw, self.labels_Nhw)
        return RegionScores(self.first.shares(self.labels_Nhw, window_NCHW), scores_NKC)

    @torch.inference_mode()
    def label(
        self, segmenter: RegionSegmenter, image_HWC: NDArray[np.uint8], seen: RegionsConfig | None
    ) -> NDArray[np.uint8]:
        """What a segmenter sees in the picture."""
        if self.scored is None:
            self.scored = score_picture(self, image_HWC, self.protocol)
        if seen is None:
            score_NKC = segmenter.pooled_scores(self.maps_NChw, self.labels_Nhw)
        else:
            score_NKC = segmenter.scores(segmenter.tower.projected(*self._tokens(seen)))
        return replace(self.scored, score_PC=score_NKC.flatten(0, 1)).labels()

    def _tokens(self, seen: RegionsConfig) -> tuple[Tensor, Tensor, Tensor]:
        """Of regions and windows, before the projection, where regions are no means of the shared maps."""
        if seen not in self.tokens:
            tower = RegionEncoder(self.first.tower.visual, seen.context)
            pixels_NCHW = normalised(resized(self.window_NCHW, seen.size), self.first.encoder)
            drawn_NKHW = self.first.drawn(self.labels_Nhw, self.window_NCHW)
            token_NKC, valid_NK = tower.tokens(pixels_NCHW, drawn_NKHW)
            self.tokens[seen] = token_NKC, tower.dense(pixels_NCHW).mean((2, 3)), valid_NK
        return self.tokens[seen]


@dataclass(frozen=True)
class Study:
    """A run's artifacts, and the benchmark to measure on."""

    settings: Config
    plan: Plan
    asked: BenchmarkConfig
    only: Collection[str] = ()  # trainings

    @cached_property
    def found(self) -> dict[str, Artifact]:
        """What the run made, by stage."""
        return {node.stage.name: node.artifact for node in self.plan.nodes}

    def regions(self, seen: RegionsConfig | None) -> Artifact:
        """The stored vectors of the corpus' regions."""
        if seen is None:
            return self.found["regions"]
        given = {name: self.found[name] for name in ("corpus", "encoder", "groups")}
        return self._made(REGIONS, seen, given)

    def train(self, training: GroupingTraining, seed: int, seen: RegionsConfig | None) -> Artifact:
        """Trains, or takes what is in the store."""
        training = replace(training, loop=replace(training.loop, seed=seed))
        curated = {name: self.found[name] for name in ("corpus", "vocabulary", "mentions", "archive")}
        given = {"encoder": self.found["encoder"], "regions": self.regions(seen), **training.inputs(curated)}
        return self._made(TRAIN, training, given)

    def _made(self, stage: Stage[Any], config: Any, given: Mapping[str, Artifact]) -> Artifact:
        runtime = replace(make_runtime("local", 1, "cpu"), locations=self.plan.locations)
        return materialize(stage, config, given, self.plan.store, runtime)

    def segmenters(self) -> Iterator[tuple[Variant, RegionSegmenter]]:
        """One of each variant and seed; untrained ones have no seed."""
        assert self.settings.train.grouping is not None, "the config trains no region recognition"
        encoder: Any = load_encoder(self.found["encoder"].local_folder(), "cpu")
        encoder.encode_texts = remembered(encoder.encode_texts)
        said = {name: self.found[name] for name in ("mentions", "vocabulary")}
        benchmark = open_benchmark(self.asked)
        groups, size = self.settings.groups.grouping, self.settings.regions.size
        for variant in variants(self.settings.train.grouping, self.only):
            asked = replace(self.asked, **variant.naming)
            name = "grouping" if variant.training else "grouping_untrained"
            config = EvaluateConfig.of(name, asked, groups, size)
            for seed in range(SEEDS if variant.training else 1):
                given = {**said, "regions": self.regions(variant.seen)}
                if variant.training:
                    given["model"] = self.train(variant.training, seed, variant.seen)
                built = build_segmenter(config, benchmark, protocol_of(asked), given, encoder)
                assert isinstance(built, RegionSegmenter)
                yield variant, built

    def counts(self) -> dict[str, list[Counts]]:
        """Confusion counts of every variant and seed."""
        benchmark, protocol = open_benchmark(self.asked), protocol_of(self.asked)
        built = list(self.segmenters())
        shared = SharedPass(built[0][1], protocol)
        labels = len(benchmark.labels)
        totals = [np.zeros((labels, labels), np.int64) for _ in built]
        for image in track(benchmark.images, description=self.asked.name):
            shared.forget()
            image_HWC, truth_HW = image.load_image(), image.load_mask()
            for number, (variant, segmenter) in enumerate(built):
                found_HW = shared.label(segmenter, image_HWC, variant.seen)
                totals[number] += confusion_counts(truth_HW, found_HW, labels)
        found: dict[str, list[Counts]] = {}
        for (variant, _), total in zip(built, totals, strict=True):
            found.setdefault(variant.name, []).append(total)
        return found


def remembered(encode_texts: Any) -> Any:
    """All segmenters ask for the same names."""
    known = cache(encode_texts)
    return lambda names, templates: known(tuple(names), tuple(templates))


def told(benchmark: Benchmark, found: Mapping[str, list[Counts]]) -> Iterator[str]:
    """The rows of a table: mean over seeds and, where there are several, their standard deviation."""
    measured = f"{benchmark.name}, {len(benchmark.images)} images"
    yield f"| naming on {measured} | mIoU, present classes | all | pixels |"
    yield "|---|---|---|---|"
    for name, seeds in found.items():
        scores = [summary(counts) for counts in seeds]
        cells = [_cell([score[key] for score in scores]) for key in KEYS]
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


def main(store: str, config: str, name: str, *trainings: str) -> None:
    """Prints the table."""
    torch.set_num_threads(os.cpu_count() or 1)
    settings = load_config(Path(config))
    _, plan = declared(settings, store)
    study = Study(settings, plan, benchmark_config(settings, name), trainings)
    for line in told(open_benchmark(study.asked), study.counts()):
        print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
