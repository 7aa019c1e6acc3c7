"""Example images: what the caption says, what the archive adds and on whose word, what segmenters see."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curation.nouns import surfaces
from evaluation.preview import Picture, Preview, spread_images
from flows.report_pictures import LabelMap, Photo, label_map, photo
from storage.artifact import Artifact
from storage.reader import CorpusReader

CONCEPTS, DONORS, CAPTION = 8, 6, 400  # shown of an archive, of a concept, and characters of a caption
CLUSTER_COLOURS = 10


@dataclass(frozen=True)
class Donor:
    """A neighbour whose caption names a concept."""

    sample_id: str
    caption: str


@dataclass(frozen=True)
class Entry:
    """One concept of an archive."""

    name: str
    score: float
    similarity: float
    cluster: int
    probability: float
    named: bool  # by the image's own caption
    true: bool | None  # None where the truth is not known
    donors: list[Donor]
    more_donors: int


@dataclass(frozen=True)
class Example:
    """One image of the corpus."""

    sample_id: str
    photo: Photo
    caption: list[tuple[str, bool]]  # pieces, and whether they name a concept
    truth: list[str] | None
    entries: list[Entry]
    others: list[str]  # names of the archive's further concepts
    maps: list[LabelMap]


@dataclass(frozen=True)
class Curated:
    """The artifacts that examples are read from."""

    reader: CorpusReader
    archive: Artifact
    mentions: Artifact
    vocabulary: Artifact
    recall: Artifact | None


def corpus_examples(curated: Curated, previews: Mapping[str, Preview], count: int) -> list[Example]:
    """Images spread evenly over the corpus.

    Args:
        curated: where they are read from.
        previews: what each segmenter sees in them, by its name; may be empty.
        count: how many.
    """
    images = dict(spread_images(curated.reader, count))
    archives = _rows(curated.archive, "archives", "concepts", images)
    concepts = curated.vocabulary.read("concepts", columns=["name"])["name"].to_pylist()
    named = {
        sample_id: [concepts[concept] for concept in found]
        for sample_id, found in _rows(curated.mentions, "mentions", "concept_ids", images).items()
    }
    shown = {sample_id: archives.get(sample_id, [])[:CONCEPTS] for sample_id in images}
    donors = {name for found in shown.values() for entry in found for name in entry["donors"][:DONORS]}
    captions = _rows(curated.reader.corpus, "samples", "caption", {*images, *donors})
    truth = _known_truth(curated.recall)
    classes = frozenset(name for names in truth.values() for name in names)
    maps = _maps(previews)
    return [
        Example(
            sample_id=sample_id,
            photo=photo(data),
            caption=marked(captions[sample_id], named.get(sample_id, [])),
            truth=truth.get(sample_id),
            entries=[
                _entry(
                    entry, named.get(sample_id, []), _verdict(entry, truth.get(sample_id), classes), captions
                )
                for entry in shown[sample_id]
            ],
            others=[entry["name"] for entry in archives.get(sample_id, [])[CONCEPTS:]],
            maps=maps.get(sample_id, []),
        )
        for sample_id, data in images.items()
    ]


def _rows(artifact: Artifact, table: str, column: str, wanted: Iterable[str]) -> dict[str, Any]:
    """Values of a column by sample id; only the shards the samples lie in are read."""
    ids = set(wanted)
    shards = {"/".join(name.split("/")[:2]) for name in ids}
    found: dict[str, Any] = {}
    for shard in (shard for shard in artifact.shards if shard in shards):
        rows = artifact.read(table, shard, ["sample_id", column])
        kept = rows.filter([name in ids for name in rows["sample_id"].to_pylist()])
        found |= dict(zip(kept["sample_id"].to_pylist(), kept[column].to_pylist(), strict=True))
    return found


def _known_truth(recall: Artifact | None) -> dict[str, list[str]]:
    if recall is None:
        return {}
    rows = recall.read("truth").to_pydict()
    return dict(zip(rows["sample_id"], rows["classes"], strict=True))


def _verdict(entry: Mapping[str, Any], truth: Sequence[str] | None, classes: Collection[str]) -> bool | None:
    """Whether a concept is true; None where it is no class, or the image's classes are not known."""
    return None if truth is None or entry["name"] not in classes else entry["name"] in truth


def _entry(
    entry: Mapping[str, Any], named: Sequence[str], true: bool | None, captions: Mapping[str, str]
) -> Entry:
    donors = entry["donors"]
    return Entry(
        name=entry["name"],
        score=entry["score"],
        similarity=entry["anchor_similarity"],
        cluster=entry["cluster"],
        probability=entry["probability"],
        named=entry["name"] in named,
        true=true,
        donors=[Donor(name, captions.get(name, "")) for name in donors[:DONORS]],
        more_donors=max(0, len(donors) - DONORS),
    )


def marked(caption: str, names: Sequence[str]) -> list[tuple[str, bool]]:
    """A caption in pieces, those that name one of the concepts told apart; long captions are cut."""
    text = caption if len(caption) <= CAPTION else caption[:CAPTION] + "…"
    forms = sorted({form for name in names for form in surfaces(name)}, key=lambda form: (-len(form), form))
    if not forms:
        return [(text, False)]
    any_form = "|".join(re.escape(form) for form in forms)
    pieces = re.split(rf"(?<!\w)({any_form})(?!\w)", text, flags=re.IGNORECASE)
    return [(piece, number % 2 == 1) for number, piece in enumerate(pieces) if piece]


def _maps(previews: Mapping[str, Preview]) -> dict[str, list[LabelMap]]:
    """Label maps of each corpus image, one per segmenter."""
    found: dict[str, list[LabelMap]] = {}
    for model, preview in previews.items():
        for picture in preview.corpus:
            drawn = label_map(model, picture.labels_HW, preview.labels)
            found.setdefault(picture.image_id, []).append(drawn)
    return found


@dataclass(frozen=True)
class Measured:
    """One image of a benchmark beside its truth."""

    image_id: str
    photo: Photo
    truth: LabelMap
    maps: list[LabelMap]


@dataclass(frozen=True)
class Gallery:
    """Images of a benchmark, and the names of its labels."""

    benchmark: str
    labels: tuple[str, ...]
    images: list[Measured]


def benchmark_gallery(name: str, previews: Mapping[str, Preview]) -> Gallery:
    """A benchmark's images as all segmenters see them."""
    first = next(iter(previews.values()))
    pictures = {
        model: {picture.image_id: picture for picture in preview.benchmark}
        for model, preview in previews.items()
    }
    images = [_measured(picture, first.labels, pictures) for picture in first.benchmark]
    return Gallery(name, first.labels, images)


def _measured(
    picture: Picture, labels: tuple[str, ...], pictures: Mapping[str, Mapping[str, Picture]]
) -> Measured:
    assert picture.image is not None, "a benchmark's preview keeps its images"
    assert picture.truth_HW is not None, "and their truth"
    seen = {model: found[picture.image_id] for model, found in pictures.items() if picture.image_id in found}
    maps = [label_map(model, one.labels_HW, labels, picture.truth_HW) for model, one in seen.items()]
    return Measured(
        picture.image_id, photo(picture.image), label_map("truth", picture.truth_HW, labels), maps
    )
