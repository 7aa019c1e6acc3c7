"""Stage ``train``: a segmenter from captions, from archives, or (as a ceiling) from the true concepts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import torch
from safetensors.torch import save as save_tensors

from storage.artifact import Artifact
from storage.reader import CorpusReader
from storage.schemas import table_of
from storage.stage import Job, Output, Stage
from training.data import Loader
from training.groupvit import GroupViTConfig
from training.loop import LoopConfig, Losses, train
from training.nouns import DrawConfig, Kind, NounSource
from training.recognition import RecognitionConfig, RecognitionObjective
from training.segmentation import GroupViTObjective

MODEL = "model.safetensors"


@dataclass(frozen=True)
class GroupViTTraining:
    """GroupViT with the multi-label contrast."""

    nouns: Kind = "archive"
    sources: tuple[str, ...] = ()  # of the corpus; all of them when empty
    model: GroupViTConfig = field(default_factory=GroupViTConfig)
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
    recognition: RecognitionConfig = field(default_factory=RecognitionConfig)
    draws: DrawConfig = field(default_factory=DrawConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=15))

    def inputs(self, curated: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Of the curated artifacts, those that these nouns come from."""
        return _curated(curated, {self.nouns, self.fixed})

    @property
    def fixed(self) -> Kind:
        """Nouns that are always used; an archive's draws are added to those of the caption."""
        return "truth" if self.nouns == "truth" else "caption"


Training = GroupViTTraining | GroupingTraining
SIDECARS: dict[Kind, str] = {"caption": "mentions", "archive": "archive", "truth": "corpus"}


def _curated(curated: Mapping[str, Artifact], kinds: set[Kind]) -> dict[str, Artifact]:
    names = {"corpus", "vocabulary", *(SIDECARS[kind] for kind in kinds)}
    return {name: artifact for name, artifact in curated.items() if name in names}


def noun_source(job: Job[Training], kind: Kind) -> NounSource:
    """Where nouns of a kind come from."""
    corpus, vocabulary = job.artifact("corpus"), job.artifact("vocabulary")
    return NounSource(kind, corpus, vocabulary, job.artifact(SIDECARS[kind]))


def loader(job: Job[Training], drawn: Kind | None, fixed: Kind | None, with_images: bool) -> Loader:
    """The samples of the chosen sources, with their nouns."""
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
        with_images=with_images,
    )


def train_segmenter(job: Job[Training]) -> None:
    """Stage ``train``: fits a segmenter, writes its weights and its loss curve."""
    if isinstance(job.config, GroupViTTraining):
        _train_groupvit(job, job.config)
    else:
        _train_grouping(job, job.config)


def _train_groupvit(job: Job[Training], config: GroupViTTraining) -> None:
    encoder = job.runtime.load_encoder(job.artifact("encoder").local_folder(), job.runtime.device)
    names = job.artifact("vocabulary").read("concepts", columns=["name"])["name"].to_pylist()
    torch.manual_seed(config.loop.seed)
    objective = GroupViTObjective(config.model, encoder, names, config.prompt, config.loop.seed)
    samples = loader(job, drawn=config.nouns, fixed=None, with_images=True)
    _fit(job, objective, samples)


def _train_grouping(job: Job[Training], config: GroupingTraining) -> None:
    encoder = job.runtime.load_encoder(job.artifact("encoder").local_folder(), job.runtime.device)
    concepts = job.artifact("vocabulary").read("concepts", columns=["vector"])
    objective = RecognitionObjective(
        config.recognition, encoder, concepts, regions=job.optional("regions"), groups=job.optional("groups")
    )
    drawn: Kind | None = "archive" if config.nouns == "archive" else None
    samples = loader(job, drawn, config.fixed, with_images=config.recognition.trains != "head")
    _fit(job, objective, samples)


def _fit(job: Job[Training], objective: GroupViTObjective | RecognitionObjective, samples: Loader) -> None:
    loop = job.config.loop
    title = f"train {_method(job.config)} {job.config.nouns}"
    losses = train(objective, samples.batches, samples.steps, loop, job.folder, job.runtime.progress, title)
    seen = sum(samples.sizes.values())
    tensors = {name: t.contiguous() for name, t in objective.model.state_dict().items()}
    output = Output(tables={"losses": _curve(losses, samples)}, seen=seen, kept=seen)
    output.files[MODEL] = (save_tensors(tensors), 0)
    job.write(output)


def _method(config: Training) -> Literal["groupvit", "grouping"]:
    return "groupvit" if isinstance(config, GroupViTTraining) else "grouping"


def _curve(losses: Losses, samples: Loader) -> pa.Table:
    epoch = [step / samples.steps_per_epoch for step in losses.step]
    return table_of("losses", {"step": losses.step, "epoch": epoch, "loss": losses.loss, "rate": losses.rate})


TRAIN = Stage("train", 2, train_segmenter)
