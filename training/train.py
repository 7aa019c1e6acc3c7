"""Stage ``train``: a segmenter from captions, from archives, or (as a ceiling) from the true concepts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from storage.artifact import Artifact
from storage.files import Folder
from storage.fingerprint import canonical, stable_seed
from storage.reader import CorpusReader
from storage.schemas import table_of
from storage.stage import Job, Output, Stage
from training.curve import Curve
from training.distributed import ALONE, Peers, own_cores
from training.groupvit import GroupViTConfig
from training.groupvit_folder import identity_of, start_from
from training.launch import together
from training.loader import Beside, Loader, View
from training.loop import LoopConfig, train
from training.low_rank import plain_state
from training.nouns import DrawConfig, Kind, NounSource
from training.recognition import RecognitionConfig, RecognitionObjective, interpolated
from training.segmentation import GroupViTObjective
from training.sharding import spread, whole
from training.state import Tensors
from training.tracking import TensorBoard, Tracker, WeightsAndBiases
from training.views import RandomCrops, RegionMaps, RegionVectors, Squares

MODEL = "model.safetensors"


@dataclass(frozen=True)
class GroupViTTraining:
    """GroupViT with the multi-label contrast."""

    nouns: Kind = "archive"
    sources: tuple[str, ...] = ()  # of the corpus; all of them when empty
    model: GroupViTConfig = field(default_factory=GroupViTConfig)
    init: str = field(
        default="", metadata={"identity": False}
    )  # folder or hf-hub:… to start from; its bytes count
    draws: DrawConfig = field(default_factory=DrawConfig)
    prompt: str = "a photo of a {}."
    loop: LoopConfig = field(default_factory=LoopConfig)

    def inputs(self, curated: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Of the curated artifacts, those that these nouns come from."""
        return _curated(curated, {self.nouns})


@dataclass(frozen=True)
class GroupingTraining:
    """Region recognition by the one-way noun-to-region loss, on regions that are given."""

    nouns: Kind = "archive"
    sources: tuple[str, ...] = ()  # of the corpus; all of them when empty
    with_caption: bool = True  # an archive's draws are added to the caption's nouns; else they come alone
    recognition: RecognitionConfig = field(default_factory=RecognitionConfig)
    draws: DrawConfig = field(default_factory=DrawConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=15))

    def inputs(self, curated: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Of the curated artifacts, those that these nouns come from."""
        return _curated(curated, {self.nouns, self.fixed or self.nouns})

    @property
    def drawn(self) -> Kind | None:
        """Nouns that are drawn anew in every epoch."""
        return "archive" if self.nouns == "archive" else None

    @property
    def fixed(self) -> Kind | None:
        """Nouns that are always used."""
        if self.nouns == "archive":
            return "caption" if self.with_caption else None
        return self.nouns


Training = GroupViTTraining | GroupingTraining
SIDECARS: dict[Kind, str] = {"caption": "mentions", "archive": "archive", "truth": "corpus"}


def _curated(curated: Mapping[str, Artifact], kinds: set[Kind]) -> dict[str, Artifact]:
    names = {"corpus", "vocabulary", *(SIDECARS[kind] for kind in kinds)}
    return {name: artifact for name, artifact in curated.items() if name in names}


def noun_source(job: Job[Training], kind: Kind) -> NounSource:
    """Where nouns of a kind come from."""
    corpus, vocabulary = job.artifact("corpus"), job.artifact("vocabulary")
    return NounSource(kind, corpus, vocabulary, job.artifact(SIDECARS[kind]), job.config.draws.least)


def loader(
    job: Job[Training],
    drawn: Kind | None,
    fixed: Kind | None,
    view: View | None,
    beside: Beside | None = None,
    peers: Peers = ALONE,
) -> Loader:
    """The samples of the chosen sources, with their nouns, as they are viewed, and what is stored of them."""
    reader = CorpusReader(job.artifact("corpus"), job.runtime.locations)
    wanted = job.config.sources
    shards = tuple(s for s in reader.shards if not wanted or s.split("/")[0] in wanted)
    return Loader(
        reader=reader,
        drawn=noun_source(job, drawn) if drawn else None,
        fixed=noun_source(job, fixed) if fixed else None,
        draws=job.config.draws,
        shards=shards,
        batch_size=job.config.loop.batch_size,
        open_shards=job.config.loop.open_shards,
        epochs=job.config.loop.epochs,
        seed=job.config.loop.seed,
        view=view,
        beside=beside,
        rank=peers.rank,
        world=peers.world,
        threads=own_cores(),
    )


def starting_weights(config: Training, store: Folder) -> dict[str, str]:
    """What a training starts from, where that is not chance.

    Raises:
        InputError: if it is not there.
    """
    init = config.init if isinstance(config, GroupViTTraining) else ""
    return {"init": identity_of(init, store)} if init else {}


def train_segmenter(job: Job[Training]) -> None:
    """Stage ``train``: fits a segmenter, writes its weights and its loss curve."""
    together(_train, job)


def _train(job: Job[Training], peers: Peers) -> None:
    if isinstance(job.config, GroupViTTraining):
        _train_groupvit(job, job.config, peers)
    else:
        _train_grouping(job, job.config, peers)


def _train_groupvit(job: Job[Training], config: GroupViTTraining, peers: Peers) -> None:
    encoder = job.runtime.load_encoder(job.artifact("encoder").local_folder(), job.runtime.device)
    names = job.artifact("vocabulary").read("concepts", columns=["name"])["name"].to_pylist()
    torch.manual_seed(stable_seed("weights", config.loop.seed))
    objective = GroupViTObjective(config.model, encoder, names, config.prompt, config.loop.seed)
    if config.init:
        start_from(config.init, objective.model)
    view = RandomCrops(config.model.image_size, config.loop.seed)
    samples = loader(job, drawn=config.nouns, fixed=None, view=view, peers=peers)
    _fit(job, objective, samples, peers)


def _train_grouping(job: Job[Training], config: GroupingTraining, peers: Peers) -> None:
    encoder = job.runtime.load_encoder(job.artifact("encoder").local_folder(), job.runtime.device)
    concepts = job.artifact("vocabulary").read("concepts", columns=["vector"])
    objective = RecognitionObjective(config.recognition, encoder, concepts)
    drawn, finish = config.drawn, _finisher(objective.model, 1 - config.recognition.keep)
    if config.recognition.trains == "head":
        samples = loader(job, drawn, config.fixed, None, RegionVectors(job.artifact("regions")), peers)
    else:
        view, maps = Squares(config.recognition.size), RegionMaps(job.artifact("groups"))
        samples = loader(job, drawn, config.fixed, view, maps, peers)
    _fit(job, objective, samples, peers, finish)


def _finisher(model: nn.Module, share: float) -> Callable[[Tensors], Tensors]:
    """Makes trained weights those of a plain tower, some way from the untrained ones."""
    before = {name: tensor.clone() for name, tensor in plain_state(model).items()}

    def finish(weights: Tensors) -> Tensors:
        model.load_state_dict(spread(weights, model.state_dict()))
        return interpolated(before, whole(plain_state(model)), share)

    return finish


def _fit(
    job: Job[Training],
    objective: GroupViTObjective | RecognitionObjective,
    samples: Loader,
    peers: Peers,
    finish: Callable[[Tensors], Tensors] = lambda weights: weights,
) -> None:
    loop = job.config.loop
    title = f"train {_method(job.config)} {job.config.nouns}"
    state = train(
        objective,
        samples.batches,
        samples.steps,
        loop,
        job.folder,
        job.runtime.progress,
        title,
        _trackers(job) if peers.is_first else [],
        peers,
    )
    weights = finish(state.weights())  # of a sharded model every process has a part in this
    if not peers.is_first:
        return
    seen, curve = sum(samples.sizes.values()), state.curve
    output = Output(tables=_tables(curve, samples.steps_per_epoch), seen=seen, kept=seen)
    output.files[MODEL] = (save_tensors(weights), 0)
    output.facts["skipped_steps"] = sum(curve.skipped)
    waited = math.fsum(curve.waited)
    output.timings = {"data": round(waited, 3), "step": round(math.fsum(curve.seconds) - waited, 3)}
    job.write(output)


def _trackers(job: Job[Training]) -> list[Tracker]:
    trackers: list[Tracker] = [TensorBoard(job.folder)]
    if job.config.loop.wandb:
        identity = job.folder.url.rstrip("/").rsplit("/", 1)[-1]
        trackers.append(WeightsAndBiases(job.config.loop.wandb, identity, canonical(job.config)))
    return trackers


def _method(config: Training) -> Literal["groupvit", "grouping"]:
    return "groupvit" if isinstance(config, GroupViTTraining) else "grouping"


def _tables(curve: Curve, steps_per_epoch: int) -> dict[str, pa.Table]:
    """The curve, and apart from it what differs between two runs that are otherwise the same."""
    losses = {
        "step": curve.step,
        "epoch": [step / steps_per_epoch for step in curve.step],
        "loss": curve.loss,
        "rate": curve.rate,
        "gradient_norm": curve.norm,
        "skipped": curve.skipped,
    }
    pairs = zip(curve.samples, curve.seconds, strict=True)
    speeds = {
        "step": curve.step,
        "samples_per_second": [samples / seconds for samples, seconds in pairs],
        "data_wait": [w / s for w, s in zip(curve.waited, curve.seconds, strict=True)],
    }
    return {"losses": table_of("losses", losses), "speeds": table_of("speeds", speeds)}


def _knobs(config: Training) -> dict[str, str]:  # noqa: ARG001
    return {
        "data": "give more processor cores to decoding, store smaller images, or bring the tars nearer",
        "step": "a GPU or more of them, loop.precision, or loop.deterministic = false on many cores",
    }


TRAIN = Stage("train", 2, train_segmenter, starting_weights, knobs=_knobs)
