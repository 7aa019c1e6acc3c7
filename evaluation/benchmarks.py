"""Benchmarks as they lie on disk: pictures, true labels, and the names of the labels."""

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from evaluation import classes
from evaluation.labelled import IGNORE, Blob, LabelledImage, RejectedImage, Rejection
from storage.errors import InputError

Synonyms = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Benchmark:
    """Pictures with true labels.

    A mask's value, a logit channel and a row of the metrics are all indices into ``labels``.
    """

    name: str
    class_names: tuple[str, ...]  # without background
    synonyms: tuple[tuple[str, ...], ...]  # names to prompt each class with, its own among them
    has_background: bool
    background_names: tuple[str, ...]  # names to prompt background with; may be empty
    images: Sequence[LabelledImage]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in mask order: background first where there is one."""
        return ("background", *self.class_names) if self.has_background else self.class_names


def prompt_names(class_names: Sequence[str], synonyms: Synonyms | None) -> tuple[tuple[str, ...], ...]:
    """Each class's own name followed by its synonyms.

    Raises:
        ValueError: for synonyms of a class that is not there.
    """
    table = synonyms or {}
    if strangers := sorted(set(table) - set(class_names)):
        raise ValueError(f"synonyms for {strangers}, which are no classes; classes: {class_names}")
    return tuple((name, *table.get(name, ())) for name in class_names)


def _benchmark(
    name: str,
    class_names: tuple[str, ...],
    images: Sequence[LabelledImage],
    background_names: tuple[str, ...] | None,
    synonyms: Synonyms | None,
) -> Benchmark:
    return Benchmark(
        name=f"{name}-synonyms" if synonyms else name,
        class_names=class_names,
        synonyms=prompt_names(class_names, synonyms),
        has_background=background_names is not None,
        background_names=background_names or (),
        images=images,
    )


def voc(root: Path, synonyms: Synonyms | None = None) -> Benchmark:
    """PASCAL VOC 2012 val: 20 classes and background.

    Args:
        root: the devkit's year folder (``VOCdevkit/VOC2012``).
        synonyms: further prompt names, such as ``classes.VOC_SYNONYMS``; renames the benchmark.

    Raises:
        InputError: if the folder does not have the devkit's layout.
    """
    remedy = "give the folder VOCdevkit/VOC2012 of the VOC 2012 trainval archive"
    split = root / "ImageSets" / "Segmentation" / "val.txt"
    images, masks = _folder(root / "JPEGImages", remedy), _folder(root / "SegmentationClass", remedy)
    if not split.is_file():
        raise InputError(f"{split} is not there; {remedy}")
    found = [
        LabelledImage(key, Blob(images / f"{key}.jpg"), Blob(masks / f"{key}.png"))
        for key in split.read_text().split()
    ]
    _some(found, split, remedy)
    return _benchmark("voc", classes.VOC, found, classes.STUFF, synonyms)


def coco_object(root: Path, synonyms: Synonyms | None = None) -> Benchmark:
    """COCO-Object on val2017: 80 things and background.

    Args:
        root: folder with ``images/val2017/<id>.jpg`` and
            ``annotations/val2017/<id>_instanceTrainIds.png``.
        synonyms: further prompt names, such as ``classes.COCO_SYNONYMS``; renames the benchmark.

    Raises:
        InputError: if the folder has another layout.
    """
    remedy = (
        "give a folder with images/val2017 and, drawn from COCO's instance annotations, "
        "annotations/val2017/<id>_instanceTrainIds.png"
    )
    images = _folder(root / "images" / "val2017", remedy)
    masks = _folder(root / "annotations" / "val2017", remedy)
    found = [
        LabelledImage(path.stem, Blob(path), Blob(masks / f"{path.stem}_instanceTrainIds.png"))
        for path in sorted(images.glob("*.jpg"))
    ]
    _some(found, images, remedy)
    return _benchmark("coco_object", classes.COCO_OBJECT, found, classes.STUFF, synonyms)


def cityscapes(root: Path, synonyms: Synonyms | None = None) -> Benchmark:
    """Cityscapes val: 19 classes, no background; raw label ids become train ids.

    Args:
        root: folder with ``leftImg8bit/val`` and ``gtFine/val``.
        synonyms: further prompt names; renames the benchmark.

    Raises:
        InputError: if the folder has another layout.
    """
    remedy = "give the folder with leftImg8bit/val and gtFine/val of the Cityscapes archives"
    images = _folder(root / "leftImg8bit" / "val", remedy)
    masks = _folder(root / "gtFine" / "val", remedy)
    found = [_cityscapes_image(path, masks) for path in sorted(images.glob("*/*_leftImg8bit.png"))]
    _some(found, images, remedy)
    return _benchmark("cityscapes", classes.CITYSCAPES, found, None, synonyms)


def _cityscapes_image(path: Path, masks: Path) -> LabelledImage:
    key = path.name.removesuffix("_leftImg8bit.png")
    mask = masks / path.parent.name / f"{key}_gtFine_labelIds.png"
    return LabelledImage(key, Blob(path), Blob(mask), _cityscapes_train_ids())


def _cityscapes_train_ids() -> tuple[int, ...]:
    table = {label: train for train, label in enumerate(classes.CITYSCAPES_LABEL_IDS)}
    return tuple(table.get(label, IGNORE) for label in range(256))


def shards(
    name: str,
    tars: Sequence[Path],
    class_names: Sequence[str],
    background_names: Sequence[str] | None = None,
    synonyms: Synonyms | None = None,
) -> Benchmark:
    """A benchmark in WebDataset shards: ``<key>.jpg`` beside ``<key>.png``, the mask.

    Args:
        name: of the benchmark and of its source: image ids are ``<name>/<shard stem>/<key>``.
        tars: uncompressed tar files.
        class_names: in the order of the masks' values, without background.
        background_names: None if label 0 is the first class; else it is background, and these are
            the names to prompt it with (possibly none).
        synonyms: further prompt names per class; renames the benchmark.

    Raises:
        InputError: for a shard that is no tar, or when there are no pictures at all.
    """
    found = [image for tar in tars for image in _tar_images(name, Path(tar))]
    _some(found, ", ".join(map(str, tars)) or name, "give tars of <key>.jpg and <key>.png")
    background = None if background_names is None else tuple(background_names)
    return _benchmark(name, tuple(class_names), found, background, synonyms)


def _tar_images(source: str, tar: Path) -> list[LabelledImage]:
    files = _tar_index(tar)
    return [
        LabelledImage(f"{source}/{tar.stem}/{key}", files[key, extension], files.get((key, "png")))
        for key, extension in files
        if extension in ("jpg", "jpeg")
    ]


def _tar_index(tar: Path) -> dict[tuple[str, str], Blob]:
    """Files of a tar by key and extension; as in WebDataset, a key ends at its name's first dot."""
    try:
        with tarfile.open(tar, "r:") as archive:
            members = [member for member in archive if member.isfile()]
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{tar} cannot be read: {error}; give an uncompressed tar") from error
    index = {}
    for member in members:
        folder, name = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
        stem, _, extension = name.partition(".")
        key = (folder / stem).as_posix()
        index[key, extension.lower()] = Blob(tar, member.name, member.offset_data, member.size)
    return index


def _folder(path: Path, remedy: str) -> Path:
    if not path.is_dir():
        raise InputError(f"{path} is not there; {remedy}")
    return path


def _some(found: Sequence[LabelledImage], where: object, remedy: str) -> None:
    if not found:
        raise InputError(f"{where} names no pictures; {remedy}")


@dataclass(frozen=True)
class Presence:
    """Which classes the pictures of a benchmark show."""

    classes: dict[str, frozenset[str]]  # by image id, pictures that show any
    rejected: tuple[Rejection, ...]


def classes_present(benchmark: Benchmark, min_share: float = 0.01) -> Presence:
    """Classes whose pixels are more than ``min_share`` of all pixels of a picture.

    Background is no class. Pictures that show no class are left out: nothing can be recalled there.
    """
    present, rejected = {}, []
    for image in benchmark.images:
        try:
            found = _classes_of(image, benchmark, min_share)
        except RejectedImage as error:
            rejected.append(Rejection(image.image_id, error.reason, error.detail))
            continue
        if found:
            present[image.image_id] = found
    return Presence(present, tuple(rejected))


def _classes_of(image: LabelledImage, benchmark: Benchmark, min_share: float) -> frozenset[str]:
    mask_HW = image.load_mask()
    pixels = np.bincount(mask_HW.ravel(), minlength=256)
    first = int(benchmark.has_background)
    shares = pixels[first : first + len(benchmark.class_names)] / mask_HW.size
    pairs = zip(benchmark.class_names, shares, strict=True)
    return frozenset(name for name, share in pairs if share > min_share)


def caption_truth(root: Path, min_share: float = 0.01) -> Presence:
    """What captions or archives of the COCO pictures under ``root`` should name; see ``coco_object``."""
    return classes_present(coco_object(root), min_share)
