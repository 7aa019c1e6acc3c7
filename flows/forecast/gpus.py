"""``cocu plan --gpus``: what GroupViT's training takes on GPUs that are not at hand, by counting.

Nothing is run and no tar is read. Operations are counted, and a share of the GPU's peak is assumed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from curation.corpus import CorpusConfig
from flows.config import Config, load_config
from flows.forecast.flops import image_flops, text_flops
from flows.forecast.laws import Estimate, cost
from flows.forecast.predict import duration
from flows.forecast.prediction import Prediction, StagePrediction
from flows.forecast.sample import extent
from storage.errors import CocuError, ConfigError
from training.groupvit import GroupViT, GroupViTConfig
from training.train import GroupViTTraining

CAPTION, PROMPT = 14, 9  # tokens: ten words, and "a photo of a {noun}.", with start and end
SHARES = (0.1, 0.2, 0.35)  # of the peak: low, expected, high; rows of 384 channels do not fill a large GPU
IMAGES_A_CORE = 350  # a second, decoded and cropped: docs/performance.md, photographs of VOC
BACKWARD = 2  # forwards
STATE = 16  # bytes of a parameter: float32 weight, gradient and AdamW's two moments
CHECKPOINT = 12  # bytes of a parameter: weight and moments
KEPT = 2  # checkpoints
A_BLOCK = (
    36  # bytes that a token's channel keeps for the backward pass of a block, in bfloat16: see `activations`
)
SPACE = 0.85  # of the memory: the rest is left to the driver, to products' workspaces and to fragments


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its maker's figures."""

    name: str
    peak: float  # bfloat16 operations a second, dense
    memory: float  # bytes


GPUS = {
    "a100-40": Gpu("A100 40 GB", 312e12, 40e9),
    "a100": Gpu("A100 80 GB", 312e12, 80e9),
    "h100": Gpu("H100 SXM 80 GB", 989e12, 80e9),
    "h200": Gpu("H200 141 GB", 989e12, 141e9),
    "l40s": Gpu("L40S 48 GB", 362e12, 48e9),
}


@dataclass(frozen=True)
class Machine:
    """What is estimated for."""

    gpus: int
    kind: str = "a100"
    price: float = 0.0  # of an hour of one GPU

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"--gpus {self.gpus}: give a number of GPUs, at least 1")
        if self.kind not in GPUS:
            raise ConfigError(f"--gpu '{self.kind}' is unknown; there are {', '.join(GPUS)}")

    @property
    def gpu(self) -> Gpu:
        """One of them."""
        return GPUS[self.kind]


def estimate_run(config: Path, overrides: Sequence[str], images: int | None, machine: Machine) -> Prediction:
    """What the GroupViT trainings of a config take.

    Raises:
        ConfigError: if it trains none, or nothing tells how many images it has.
    """
    began, settings = time.perf_counter(), load_config(config, overrides, unset=True)
    if settings.train.groupvit is None:
        raise ConfigError("only GroupViT's training is counted; give [train.groupvit], or use --calibrate")
    found = images or images_of(settings.corpus)
    stages = [
        _stage(f"train groupvit_{nouns}", settings.train.groupvit, _trained(settings, found), machine)
        for nouns in settings.train.nouns
    ]
    return Prediction(
        name=settings.name,
        images=found,
        price=machine.price * machine.gpus,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        machine=f"{machine.gpus} × {machine.gpu.name}",
        spent=round(time.perf_counter() - began, 2),
        basis=_basis(settings.train.groupvit, machine),
        stages=tuple(stages),
    )


def images_of(corpus: CorpusConfig) -> int:
    """Pairs of a corpus: as its sources say, else as their tars tell.

    Raises:
        ConfigError: if neither does.
    """
    try:
        return sum(source.images or extent(source).images for source in corpus.sources)
    except (CocuError, OSError) as error:
        raise ConfigError(f"the corpus' size is not known ({error}); give --images N") from error


def _trained(settings: Config, images: int) -> int:
    """Images of the sources that are trained on."""
    wanted = settings.train.groupvit.sources if settings.train.groupvit else ()
    if not wanted:
        return images
    chosen = tuple(source for source in settings.corpus.sources if source.name in wanted)
    share = images_of(replace(settings.corpus, sources=chosen)) / images_of(settings.corpus)
    return round(images * share)


def _stage(label: str, training: GroupViTTraining, images: int, machine: Machine) -> StagePrediction:
    model, loop = training.model, training.loop
    parameters, steps = count_parameters(model), loop.epochs * (images // loop.batch_size)
    own = -(-loop.batch_size // machine.gpus)
    one = activations(model, training.draws.count)
    asked = min(loop.micro_batch or own, own)
    piece = fitting(asked, one, machine.gpu.memory * SPACE - STATE * parameters)
    flops = sample_flops(model, training.draws.count) * (
        1 + BACKWARD + (1 - piece / own)
    )  # all pieces but the last twice
    low, mid, high = (loop.batch_size * flops / (machine.gpus * machine.gpu.peak * s) for s in SHARES)
    seconds = Estimate(high, mid, low).times(steps)
    again = (
        f", in pieces of {piece} (loop.micro_batch) of which all but one are encoded twice"
        if piece < own
        else ""
    )
    return StagePrediction(
        label=label,
        fingerprint="",
        seconds=seconds,
        memory=STATE * parameters + piece * one,
        disk=float(4 + CHECKPOINT * KEPT) * parameters,
        cost=cost(seconds, machine.price * machine.gpus),
        formula=f"{steps:,} steps × {duration(mid)}",
        basis=f"{loop.batch_size} images × {flops / 1e9:.1f} GFLOP a step, {own} on each GPU{again}; "
        f"{loop.batch_size / mid:,.0f} images/s want {loop.batch_size / mid / IMAGES_A_CORE:.0f} CPU cores "
        "to load them",
    )


def _basis(training: GroupViTTraining, machine: Machine) -> tuple[str, ...]:
    (low, mid, high), model = SHARES, training.model
    assumed = (
        f"assumed, not measured: {mid:.0%} ({low:.0%} to {high:.0%}) of {machine.gpu.peak / 1e12:.0f} "
        "TFLOP/s a GPU in bfloat16; exchange between GPUs and loading hidden behind the computing"
    )
    counted = (
        f"counted: {count_parameters(model) / 1e6:.1f} M parameters; an image of {model.image_size} px, a "
        f"caption of {CAPTION} tokens and {training.draws.count} prompts of {PROMPT}; backward "
        "twice the forward"
    )
    memory = (
        f"memory of one GPU: {STATE} bytes a parameter, and {A_BLOCK} bytes of each token, channel "
        "and block; what curation and evaluation take: --calibrate, on the machine they run on"
    )
    return (assumed, counted, memory)


def sample_flops(model: GroupViTConfig, nouns: int) -> float:
    """Of one image with its caption and prompts, forward."""
    return image_flops(model) + text_flops(model, CAPTION) + nouns * text_flops(model, PROMPT)


def count_parameters(model: GroupViTConfig) -> int:
    """Of the whole model."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GroupViT(model).parameters())


def activations(model: GroupViTConfig, nouns: int) -> float:
    """Bytes that a sample keeps for the backward pass under bfloat16 autocast.

    A block keeps of each token and channel: the inputs of both norms in float32 (8), their outputs (4),
    queries, keys and values (6), what attention gathered (2), the MLP's four-fold hidden layer before and
    after its activation (16). Grouping blocks count as another block over their tokens.
    """
    patches = (model.image_size // model.patch_size) ** 2
    image = 0
    for depth, groups in zip(model.depths, model.groups, strict=True):
        image += depth * (patches + groups) + (patches if groups else 0)
        patches = groups or patches
    text = model.text_layers * (CAPTION + nouns * PROMPT)
    return float(A_BLOCK * (image * model.width + text * model.text_width))


def fitting(asked: int, one: float, space: float) -> int:
    """Samples of a pass: as many as asked, else the largest power of two that its memory holds.

    Raises:
        ConfigError: if it does not hold a single one.
    """
    if one > space:
        raise ConfigError("the model does not fit on this GPU; choose another with --gpu, or a smaller model")
    piece = asked
    while piece * one > space:
        piece = 1 << (piece - 1).bit_length() - 1
    return piece
