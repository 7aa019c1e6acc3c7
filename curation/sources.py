"""Where image–caption pairs come from: tars that exist, scenes to render, a folder or a table to pack."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import fsspec

from curation.scenes import SceneConfig, encode_jpeg, encode_mask_png, render_scene
from storage.errors import ConfigError, InputError
from storage.fingerprint import stable_seed
from storage.tars import Sample, write_tar

Kind = Literal["webdataset", "img2dataset", "table", "scenes", "coco"]
TARS = ("webdataset", "img2dataset")  # kinds that are read where they lie


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes: the built-in corpus."""

    split: str = "curate"  # splits of one seed share no scene
    count: int = 3000  # scenes
    shard_size: int = 500  # scenes per tar
    captions: Literal["salient", "random"] = "salient"
    masks: bool = False  # also write <key>.png
    seed: int = 0
    scene: SceneConfig = field(default_factory=SceneConfig)


@dataclass(frozen=True)
class Source:
    """One named part of a corpus."""

    name: str
    kind: Kind = "webdataset"
    # webdataset, img2dataset: tars; table: Parquet, CSV or JSONL files; with {00..99} ranges and * wildcards.
    # coco: one folder
    urls: tuple[str, ...] = field(default=(), metadata={"identity": False})
    scenes: Scenes | None = None
    images: int | None = field(default=None, metadata={"identity": False})  # told where no tar can be read

    def __post_init__(self) -> None:
        if not self.name or any(not (c.isalnum() or c in "_-") for c in self.name):
            raise ConfigError(f"source name '{self.name}' may hold letters, digits, '_' and '-' only")
        if self.kind == "scenes" and self.scenes is None:
            object.__setattr__(self, "scenes", Scenes())
        if self.kind != "scenes" and not self.urls:
            raise ConfigError(f"source '{self.name}' of kind '{self.kind}' needs urls = [\"…\"]")


def expand_urls(urls: tuple[str, ...]) -> list[str]:
    """The files that brace ranges and wildcards stand for, sorted within each pattern.

    Raises:
        InputError: for a pattern that matches nothing.
    """
    found = []
    for url in urls:
        matches = sorted(_match(url))
        if not matches:
            raise InputError(
                f"no file matches '{url}'; check the source's urls (and COCU_DATA, if it names it)"
            )
        found += matches
    return found


def _match(url: str) -> list[str]:
    expanded = [url]
    while any("{" in item for item in expanded):
        expanded = [more for item in expanded for more in _expand_first_brace(item)]
    return [hit for item in expanded for hit in _glob(item)]


def _expand_first_brace(url: str) -> list[str]:
    head, _, rest = url.partition("{")
    if not rest:
        return [url]
    body, _, tail = rest.partition("}")
    first, dots, last = body.partition("..")
    if not dots:
        return [head + item + tail for item in body.split(",")]
    return [f"{head}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]


def _glob(url: str) -> list[str]:
    try:
        fs, path = fsspec.core.url_to_fs(url)
        hits = [str(hit) for hit in fs.glob(path)] if "*" in path or "?" in path else [path]
        return [fs.unstrip_protocol(hit) if "://" in url else hit for hit in hits if fs.exists(hit)]
    except Exception as error:  # each file system has its own kinds
        raise InputError(f"cannot list '{url}' ({error}); check the source's urls") from error


def scene_shards(scenes: Scenes) -> dict[str, range]:
    """Shard stems of a rendered source, with the indices of their scenes."""
    starts = range(0, scenes.count, scenes.shard_size)
    return {f"{n:05d}": range(i, min(i + scenes.shard_size, scenes.count)) for n, i in enumerate(starts)}


def scene_tar(scenes: Scenes, indices: range) -> bytes:
    """A WebDataset tar of rendered scenes: image, caption, the true concepts, and the mask if wanted."""
    stream = io.BytesIO()
    write_tar(stream, scene_samples(scenes, indices))
    return stream.getvalue()


def scene_samples(scenes: Scenes, indices: range) -> Iterator[Sample]:
    """Rendered scenes one by one."""
    seed = stable_seed("scenes", scenes.seed, scenes.split)
    return (_scene_sample(scenes, seed, index) for index in indices)


def _scene_sample(scenes: Scenes, seed: int, index: int) -> Sample:
    scene = render_scene(scenes.scene, seed, index, scenes.captions)
    members = {
        "jpg": encode_jpeg(scene.image_HWC),
        "txt": scene.caption.encode(),
        "json": json.dumps({"concepts": list(scene.concepts)}).encode(),
    }
    if scenes.masks:
        members["png"] = encode_mask_png(scene.mask_HW)
    return Sample(f"{index:06d}", members)


def coco_files(folder: str) -> tuple[Path, list[Path]]:
    """The caption annotations and the images of a folder in COCO's layout.

    Raises:
        InputError: if it is not such a folder.
    """
    root = Path(folder)
    annotations = sorted((root / "annotations").glob("captions_*.json"))
    images = sorted(path for path in (root / "images").rglob("*.jpg"))
    if not annotations or not images:
        raise InputError(
            f"'{folder}' needs annotations/captions_*.json and images/**/*.jpg; check the source's urls"
        )
    return annotations[0], images


def coco_tar(folder: str) -> bytes:
    """A WebDataset tar of a COCO folder."""
    stream = io.BytesIO()
    write_tar(stream, coco_samples(folder))
    return stream.getvalue()


def coco_samples(folder: str) -> Iterator[Sample]:
    """Each image of a COCO folder with its captions, the first of them as txt.

    Raises:
        InputError: if it is not such a folder.
    """
    annotations, images = coco_files(folder)
    try:
        captions = _captions_by_image(json.loads(annotations.read_bytes()))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{annotations}' is not a file of captions ({error}); give COCO's annotations"
        ) from error
    return _coco_samples(images, captions)


def _captions_by_image(annotations: dict[str, Any]) -> dict[str, list[str]]:
    """Image stem -> its captions, from COCO's own file or from a plain {id: [captions]} one."""
    if "annotations" not in annotations:
        return {key: captions for key, captions in annotations.items() if captions}
    stems = {image["id"]: Path(image["file_name"]).stem for image in annotations["images"]}
    found: dict[str, list[str]] = {}
    for item in sorted(annotations["annotations"], key=lambda item: item["id"]):
        found.setdefault(stems[item["image_id"]], []).append(item["caption"])
    return found


def _coco_samples(images: list[Path], captions: dict[str, list[str]]) -> Iterator[Sample]:
    for path in images:
        members = {"jpg": path.read_bytes()}
        if found := captions.get(path.stem):
            members["txt"] = found[0].encode()
            members["json"] = json.dumps({"captions": found}).encode()
        yield Sample(path.stem, members)
