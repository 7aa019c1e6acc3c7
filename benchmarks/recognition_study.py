"""Which training of region recognition helps: settings, nouns and seeds, measured on the same regions.

``python -m benchmarks.recognition_study STORE configs/flickr8k.toml BENCHMARK`` takes the artifacts of a run
(``cocu run … --until 'train grouping_archive'``), and keeps what it trains in the same store. BENCHMARK is
one of the config's, or coco_object, asked for as the first one is. The tower before the head is frozen, so
an image passes it once for all variants. Settings are chosen on COCO-Object, on captions or on other scenes;
VOC is reported, never chosen by.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
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
from flows.demo import reseeded
from flows.pipeline import seen_at
from flows.plan import Plan
from flows.run import decided, declared, make_runtime
from storage.artifact import Artifact
from storage.stage import Stage, materialize
from training.features import unit_maps
from training.groups import REGIONS, RegionsConfig, normalised
from training.naming import RegionScores, RegionSegmenter, resized
from training.regions import RegionEncoder, Regions
from training.train import TRAIN, GroupingTraining

SEEDS, DEVICE = 3, "cpu"
CALIBRATED = ("untrained", "caption")
LIKELY = "both, likely concepts"  # where the config has the stage that tells them
SMALL = 224  # pixels of a window where a region takes a pass of its own: a quarter of the work
KEYS = ("miou_present", "miou", "pixel_accuracy")
PLAIN, RATE = {"keep": 0.0, "alike": 1.0}, 3e-4  # the loss as it was published
COARSE = {"region_size": 0, "picture_size": 0}  # regions and pictures as windows show them in training
PLAIN_NAMING = {**COARSE, "border_weight": 0.0, "discriminants": DiscriminantConfig()}
BY_REGIONS = {  # regions alone: the picture only has its top k
    **PLAIN_NAMING,
    "image_weight": 0.0,
    "background_bias": 0.0,
}
LOG_ODDS = {**BY_REGIONS, "background_bias": 1.0}  # calibrated scores are no cosines


@dataclass(frozen=True)
class Variant:
    """One row: a training (none: the untrained encoder), and how its regions are named."""

    name: str
    training: GroupingTraining | None
    naming: Mapping[str, Any] = field(default_factory=dict)  # where it differs from the config's
    seen: RegionsConfig | None = None  # how regions are, in training and at inference; None: as configured
    archives: str = "archive"  # the stage whose archives are read


def variants(base: GroupingTraining, only: Collection[str], contexts: bool) -> Iterator[Variant]:
    """The rows, of some trainings or of all; with ``contexts`` those that see their context, and do not."""
    for name, training in trainings(base):
        if only and name not in only:
            continue
        row = partial(Variant, training=training, archives="presence" if name == LIKELY else "archive")
        if contexts:
            for context in (True, False):
                seen = RegionsConfig(size=min(SMALL, base.recognition.size), context=context)
                told = "with" if context else "without"
                yield row(f"{name}, {seen.size} px, {told} context", naming=COARSE, seen=seen)
            continue
        yield row(f"{name}, by regions alone", naming=BY_REGIONS)
        yield row(f"{name}, without discriminants", naming=PLAIN_NAMING)
        yield row(f"{name}, with them", naming={**COARSE, "border_weight": 0.0})
        yield row(f"{name}, and the border", naming=COARSE)
        yield row(f"{name}, and a look at the picture", naming={"region_size": 0})
        yield row(f"{name}, and finer maps", naming={"region_size": 2 * base.recognition.size})
        if name in CALIBRATED:
            standard = CalibrationConfig("standard", base.sources)
            captions = CalibrationConfig("captions", base.sources)
            yield row(f"{name}, standardised", naming={"calibration": standard, **BY_REGIONS})
            yield row(f"{name}, calibrated by captions", naming={"calibration": captions, **LOG_ODDS})


def trainings(base: GroupingTraining) -> Iterator[tuple[str, GroupingTraining | None]]:
    """Nouns, and the settings of the loss."""
    yield "untrained", None
    two_way = _with(base, {"both_ways": True})
    for kind, training in (("plain: ", _with(base, PLAIN, RATE)), ("", base), ("both ways: ", two_way)):
        yield f"{kind}caption", replace(training, nouns="caption")
        yield f"{kind}archive", replace(training, nouns="archive", with_caption=False)
        yield f"{kind}both", replace(training, nouns="archive")
    yield LIKELY, replace(base, nouns="archive")
    caption = replace(base, nouns="caption")
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
        self.maps_NChw: Tensor | None = None
        self.whole: dict[int, Regions] = {}
        self.tokens: dict[RegionsConfig, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, window_NCHW: Tensor, picture_CHW: Tensor) -> RegionScores:
        """Regions as the first segmenter makes them, and its scores, in place of which others are put."""
        self.window_NCHW, self.picture_CHW = window_NCHW, picture_CHW
        features = self.first.features or self._features
        self.labels_Nhw = self.first.regions(features(window_NCHW))
        return RegionScores(self.first.shares(self.labels_Nhw, window_NCHW), self._scores(self.first))

    @torch.inference_mode()
    def label(self, segmenter: RegionSegmenter, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What a segmenter sees in the picture."""
        if self.scored is None:
            self.scored = score_picture(self, image_HWC, self.protocol)
        score_PC = self._scores(segmenter).flatten(0, 1)
        return replace(self.scored, score_PC=score_PC, border_weight=segmenter.border_weight).labels()

    def _features(self, _: Tensor) -> Tensor:
        return unit_maps(self._maps(), self.first.grouping.position_weight)

    def _maps(self) -> Tensor:
        """That pixels are grouped by and regions are means of, where one size serves for both."""
        if self.maps_NChw is None:
            size = self.first.grouping.size
            self.maps_NChw = self.first.tower.dense(self._pixels(size))
        return self.maps_NChw

    def _pixels(self, size: int) -> Tensor:
        return normalised(resized(self.window_NCHW, size), self.first.encoder)

    def _scores(self, segmenter: RegionSegmenter) -> Tensor:
        whole = self._look(segmenter)
        if segmenter.features is None:
            return segmenter.pooled_scores(self._maps(), self.labels_Nhw, whole)
        return segmenter.scores(segmenter.tower.projected(*self._tokens(segmenter)), whole)

    def _look(self, segmenter: RegionSegmenter) -> Regions | None:
        """At all of the picture."""
        size = segmenter.naming.picture_size
        if not size:
            return None
        if size not in self.whole:
            found = segmenter.look(self.picture_CHW)
            assert found is not None
            self.whole[size] = found
        token_1KC, valid_1K = self.whole[size].token_NKC, self.whole[size].valid_NK
        return segmenter.tower.projected(token_1KC, token_1KC[:, 0], valid_1K)

    def _tokens(self, segmenter: RegionSegmenter) -> tuple[Tensor, Tensor, Tensor]:
        """Of regions and windows, before the projection, where regions are no means of the shared maps."""
        seen = RegionsConfig(size=segmenter.size, context=segmenter.tower.context)
        if seen not in self.tokens:
            tower = RegionEncoder(self.first.tower.visual, seen.context)
            pixels_NCHW = self._pixels(seen.size)
            drawn_NKHW = self.first.drawn(self.labels_Nhw, self.window_NCHW)
            found: Regions = tower(pixels_NCHW, drawn_NKHW)
            self.tokens[seen] = found.token_NKC, found.picture_NC, found.valid_NK
        return self.tokens[seen]


@dataclass(frozen=True)
class Study:
    """A run's artifacts, and the benchmark to measure on."""

    settings: Config
    plan: Plan
    asked: BenchmarkConfig
    only: Collection[str] = ()  # trainings; all when empty
    contexts: bool = False
    seeds: int = SEEDS

    @cached_property
    def found(self) -> dict[str, Artifact]:
        """What the run made, by label."""
        found = {node.label: node.artifact for node in self.plan.nodes}
        return found if "encoder" in found else {**found, "encoder": found["pretrain"]}

    @cached_property
    def benchmark(self) -> Benchmark:
        """Its images; those of the built-in corpus are an artifact of the run."""
        return open_benchmark(self.asked, self.found.get(f"corpus of {self.asked.name}"))

    def regions(self, seen: RegionsConfig | None) -> Artifact:
        """The stored vectors of the corpus' regions."""
        if seen is None:
            return self.found["regions"]
        given = {name: self.found[name] for name in ("corpus", "encoder", "groups")}
        return self._made(REGIONS, seen, given)

    def train(self, variant: Variant, seed: int) -> Artifact:
        """Trains, or takes what is in the store."""
        assert variant.training is not None, "there is nothing to train"
        training = replace(variant.training, loop=replace(variant.training.loop, seed=seed))
        curated = {name: self.found[name] for name in ("corpus", "vocabulary", "mentions")}
        curated["archive"] = self.found[variant.archives]
        regions = self.regions(variant.seen)
        given = {"encoder": self.found["encoder"], "regions": regions, **training.inputs(curated)}
        return self._made(TRAIN, training, given)

    def _made(self, stage: Stage[Any], config: Any, given: Mapping[str, Artifact]) -> Artifact:
        runtime = replace(make_runtime("local", 1, DEVICE), locations=self.plan.locations)
        return materialize(stage, config, given, self.plan.store, runtime)

    def segmenters(self) -> Iterator[tuple[Variant, RegionSegmenter]]:
        """One of each variant and seed; untrained ones have no seed."""
        assert self.settings.train.grouping is not None, "the config trains no region recognition"
        encoder: Any = load_encoder(self.found["encoder"].local_folder(), "cpu")
        encoder.encode_texts = remembered(encoder.encode_texts)
        said = {name: self.found[name] for name in ("mentions", "vocabulary")}
        groups = self.settings.groups.grouping
        for variant in variants(self.settings.train.grouping, self.only, self.contexts):
            if variant.archives not in self.found:
                continue
            asked = replace(self.asked, **variant.naming)
            name = "grouping" if variant.training else "grouping_untrained"
            seen = variant.seen
            at = (seen.size, seen.context) if seen else seen_at(self.settings)
            config = EvaluateConfig.of(name, asked, groups, *at)
            for seed in range(self.seeds if variant.training else 1):
                given = {**said, "regions": self.regions(seen)}
                if variant.training:
                    given["model"] = self.train(variant, seed)
                built = build_segmenter(config, self.benchmark, protocol_of(asked), given, encoder)
                assert isinstance(built, RegionSegmenter)
                yield variant, built

    def counts(self) -> dict[str, list[Counts]]:
        """Confusion counts of every variant and seed."""
        built = list(self.segmenters())
        shared = SharedPass(built[0][1], protocol_of(self.asked))
        labels = len(self.benchmark.labels)
        totals = [np.zeros((labels, labels), np.int64) for _ in built]
        for image in track(self.benchmark.images, description=self.asked.name):
            shared.forget()
            image_HWC, truth_HW = image.load_image(), image.load_mask()
            for number, (_, segmenter) in enumerate(built):
                found_HW = shared.label(segmenter, image_HWC)
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
    """One of the config's benchmarks; or COCO-Object, asked for as its first one."""
    asked = {run.benchmark.name: run.benchmark for run in settings.evaluate.benchmarks}
    if name in asked:
        return asked[name]
    first, path = settings.evaluate.benchmarks[0].benchmark, f"{os.environ['COCU_DATA']}/coco"
    return replace(first, name="coco_object", kind="coco_object", path=path)


def main(
    store: str,
    config: Path,
    benchmark: str,
    training: Annotated[
        list[str] | None, typer.Option(help="Such as untrained or both; all if none.")
    ] = None,
    contexts: Annotated[bool, typer.Option(help="With and without context instead; slow.")] = False,
    seeds: Annotated[int, typer.Option(help="Of every training.")] = SEEDS,
    seed: Annotated[int, typer.Option(help="Of the run, as of `cocu demo`.")] = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As of `cocu run`.")] = None,
) -> None:
    """Print the table: mean and standard deviation over seeds."""
    torch.set_num_threads(os.cpu_count() or 1)
    settings = decided(load_config(config, overrides or ()), DEVICE)
    settings = reseeded(settings, seed) if seed else settings
    _, plan = declared(settings, store, DEVICE)
    study = Study(settings, plan, benchmark_config(settings, benchmark), training or (), contexts, seeds)
    for line in told(study.benchmark, study.counts()):
        print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
