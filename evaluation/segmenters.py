"""From an artifact to something that labels pictures."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.functional import normalize

from evaluation.benchmarks import Benchmark
from evaluation.calibration import CalibrationConfig, calibrate
from evaluation.discriminants import DiscriminantConfig, learn
from evaluation.labelled import LabelledImage
from evaluation.measure import Measurement, measure
from evaluation.predict import Segmenter, predict, resize
from evaluation.protocols import Protocol, prompts
from evaluation.training_images import TrainingImages
from storage.artifact import Artifact
from storage.errors import ConfigError
from training.encoder import EncoderLike
from training.grouping import GroupingConfig, group, oracle_labels
from training.groups import image_backbone
from training.groupvit import GroupViTConfig
from training.naming import Naming, RegionSegmenter
from training.regions import RegionEncoder
from training.segmentation import GroupViTSegmenter, load_groupvit
from training.train import MODEL
from training.upsampling import upsample

if TYPE_CHECKING:
    from evaluation.evaluate import BenchmarkConfig, EvaluateConfig

Subject = Literal["groupvit", "grouping", "untrained", "oracle"]
LabelImage = Callable[[LabelledImage, int], Measurement]
UInt8Array = NDArray[np.uint8]


def build_labeller(
    config: "EvaluateConfig",
    benchmark: Benchmark,
    protocol: Protocol,
    given: Mapping[str, Artifact],
    load: Callable[[], EncoderLike],
) -> LabelImage:
    """What measures one image: a segmenter under the protocol, or the oracle that names given regions."""
    if config.subject == "oracle":
        return _oracle(config.grouping, protocol, load)
    encoder = load()
    segmenter = build_segmenter(config, benchmark, protocol, given, encoder)
    label = partial(predict, segmenter, protocol=protocol, device=encoder.device)
    return lambda image, labels: measure([image], labels, label)


def build_segmenter(
    config: "EvaluateConfig",
    benchmark: Benchmark,
    protocol: Protocol,
    given: Mapping[str, Artifact],
    encoder: EncoderLike,
) -> Segmenter:
    """A trained segmenter, or the untrained encoder's region naming.

    Args:
        config: which, and how it is asked.
        benchmark: its names.
        protocol: sizes and prompts.
        given: `model`, if it is trained; `regions`, `mentions` and `vocabulary`, if scores are calibrated.
        encoder: untrained.

    Raises:
        ConfigError: for what is learnt of stored regions, if more of the tower than its head was trained.
    """
    model = given.get("model")
    if config.subject == "groupvit":
        assert model is not None, "GroupViT has no untrained form"
        return _groupvit(benchmark, protocol, model, encoder)
    tower = RegionEncoder(
        deepcopy(encoder.visual), config.context
    )  # pixels are grouped by the encoder as it came
    if model is not None:
        tower.load_state_dict(load_file(model.file(MODEL)))
    frozen = model is None or model.manifest.config["recognition"]["trains"] == "head"
    return _region_segmenter(config, benchmark, protocol, tower, encoder, frozen, given)


def _groupvit(benchmark: Benchmark, protocol: Protocol, model: Artifact, encoder: EncoderLike) -> Segmenter:
    recorded = model.manifest.config["model"]
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
    network = load_groupvit(GroupViTConfig(**sizes), load_file(model.file(MODEL))).to(encoder.device)
    threshold = protocol.background_threshold if benchmark.has_background else None
    return GroupViTSegmenter(network, encoder, prompts(benchmark.synonyms, protocol), threshold)


def _region_segmenter(
    config: "EvaluateConfig",
    benchmark: Benchmark,
    protocol: Protocol,
    tower: RegionEncoder,
    encoder: EncoderLike,
    frozen: bool,
    given: Mapping[str, Artifact],
) -> Segmenter:
    asked = config.benchmark
    background = benchmark.background_names if benchmark.has_background else ()
    by_its_maps = config.grouping.backbone == "clip" and config.grouping.size == config.size
    one_pass = by_its_maps and tower.pools and frozen
    segmenter = RegionSegmenter(
        tower,
        encoder,
        config.grouping,
        None if one_pass else image_backbone(config.grouping, lambda: encoder),
        class_vectors=_class_vectors(benchmark.synonyms, protocol, encoder),
        background_vectors=_name_vectors(background, protocol, encoder) if background else None,
        size=config.size,
        naming=Naming(
            asked.top_k, asked.image_weight, asked.background_bias, asked.border_weight, asked.picture_size
        ),
    )
    if config.learns_from_captions:
        if not frozen:
            raise ConfigError(
                "calibration and discriminants read stored regions, and this tower has changed since: "
                "train its head alone (train.grouping.recognition.trains), or set calibration.kind to none "
                "and the weights of discriminants to 0"
            )
        _learn_from_captions(segmenter, asked, benchmark, given)
    return segmenter


def _learn_from_captions(
    segmenter: RegionSegmenter,
    asked: "BenchmarkConfig",
    benchmark: Benchmark,
    given: Mapping[str, Artifact],
) -> None:
    def images(told: CalibrationConfig | DiscriminantConfig) -> TrainingImages:
        return TrainingImages(
            given["regions"], given["mentions"], given["vocabulary"], told.sources, told.images
        )

    if asked.calibration.kind != "none":
        calibrate(segmenter, asked.calibration, benchmark, images(asked.calibration))
    if asked.discriminants.asked:
        seen = images(asked.discriminants)
        segmenter.naming = _told_by_captions(segmenter, asked.discriminants, benchmark, seen)


def _told_by_captions(
    segmenter: RegionSegmenter, config: DiscriminantConfig, benchmark: Benchmark, images: TrainingImages
) -> Naming:
    """What a segmenter goes by, and discriminants of the classes."""

    @torch.inference_mode()
    def class_scores(tokens_RC: torch.Tensor) -> torch.Tensor:
        vector_RD = segmenter.tower.project(tokens_RC.to(segmenter.encoder.device))
        return segmenter.class_cosines(normalize(vector_RD, dim=-1))

    learnt = learn(images, benchmark.synonyms, class_scores, config.shrinkage)
    return replace(
        segmenter.naming,
        picture_evidence=lambda tokens_RC: config.weight * learnt.of_picture(tokens_RC),
        region_evidence=lambda tokens_RC: config.region_weight * learnt.of_regions(tokens_RC),
    )


def _class_vectors(
    names: Sequence[Sequence[str]], protocol: Protocol, encoder: EncoderLike
) -> list[NDArray[np.float32]]:
    """A vector per name of each class. They are encoded together: batches of texts are filled up."""
    vectors_SD = _name_vectors([name for own in names for name in own], protocol, encoder)
    return np.split(vectors_SD, np.cumsum([len(own) for own in names])[:-1])


def _name_vectors(names: Sequence[str], protocol: Protocol, encoder: EncoderLike) -> NDArray[np.float32]:
    """A vector per name, each the mean over the protocol's templates."""
    renames = dict(protocol.renames)
    return encoder.encode_texts([renames.get(name, name) for name in names], protocol.templates)


def _oracle(config: GroupingConfig, protocol: Protocol, load: Callable[[], EncoderLike]) -> LabelImage:
    """Gives each region its majority class: the ceiling of any naming of these regions."""
    features: Any = image_backbone(config, load)

    def label(image: LabelledImage, image_HWC: UInt8Array) -> UInt8Array:
        mask_HW = image.load_mask()
        resized_HWC = resize(image_HWC, protocol.short_side, protocol.long_side)
        pixels = torch.from_numpy(resized_HWC).permute(2, 0, 1)[None].float() / 255
        labels_Nhw = group(features(pixels), [0], config)
        tall, wide = mask_HW.shape
        regions_HW = upsample(labels_Nhw, pixels, tall, wide, config.upsample)[0].numpy()
        return oracle_labels(regions_HW, mask_HW)

    return lambda image, labels: measure([image], labels, partial(label, image))
