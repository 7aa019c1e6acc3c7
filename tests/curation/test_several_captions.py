"""Samples with several captions, from each reader to the concepts that their images are said to show."""

import json
from pathlib import Path
from typing import Any

import pytest

from curation.captions import CaptionLimits
from curation.corpus import CorpusConfig
from curation.select import SelectConfig
from curation.sources import Source
from curation.vocabulary import MentionsConfig, VocabularyConfig
from storage.tars import Sample, write_tar

SAID = [["a dog runs", "an animal on grass"], ["a cat", "a cat sleeps"], ["two dogs and a ball"]]
GALLERY = VocabularyConfig(names=("dog", "cat", "grass", "ball"))
ALL = CaptionLimits(use="all")


def as_json(captions: list[str]) -> dict[str, bytes]:
    return {"json": json.dumps({"captions": captions}).encode()}


def as_members(captions: list[str]) -> dict[str, bytes]:
    return {f"{number}.txt": caption.encode() for number, caption in enumerate(captions)}


def as_lines(captions: list[str]) -> dict[str, bytes]:
    return {"txt": "\n".join(captions).encode()}


FORMS = {
    "json": (as_json, ALL),
    "members": (as_members, ALL),
    "lines": (as_lines, CaptionLimits(use="all", lines=True)),
}


@pytest.fixture
def sources(scene_jpegs: list[bytes], tmp_path: Path) -> dict[str, Source]:
    """The same pairs in every form that a reader knows."""
    found = {}
    for form, (members_of, _) in FORMS.items():
        samples = [
            Sample(f"{n}", {"jpg": scene_jpegs[n], **members_of(captions)}) for n, captions in enumerate(SAID)
        ]
        with (tmp_path / f"{form}.tar").open("wb") as stream:
            write_tar(stream, samples)
        found[form] = Source(form, urls=(str(tmp_path / f"{form}.tar"),))
    folder = tmp_path / "coco"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for n in range(len(SAID)):
        (folder / "images" / f"{n}.jpg").write_bytes(scene_jpegs[n])
    listed = [
        {"id": 10 * k + n, "image_id": n, "caption": c} for n, s in enumerate(SAID) for k, c in enumerate(s)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(len(SAID))]
    annotations = json.dumps({"images": images, "annotations": listed})
    (folder / "annotations" / "captions_val2017.json").write_text(annotations)
    return {**found, "coco": Source("coco", kind="coco", urls=(str(folder),))}


def mentioned(run: Any) -> list[list[str]]:
    names = run["vocabulary"].read("concepts")["name"].to_pylist()
    return [[names[c] for c in ids] for ids in run["mentions"].read("mentions")["concept_ids"].to_pylist()]


@pytest.mark.parametrize("form", [*FORMS, "coco"])
def test_all_captions_of_a_sample_name_its_concepts_and_the_first_stays_its_own(
    form: str, sources: dict[str, Source], curate: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    limits = FORMS[form][1] if form in FORMS else ALL
    run = curate(
        tmp_path / "store", CorpusConfig((sources[form],), captions=limits), tiny_encoder,
        until="mentions", vocabulary=GALLERY,
    )  # fmt: skip
    assert run["corpus"].read("captions")["captions"].to_pylist() == SAID
    assert run["corpus"].read("samples")["caption"].to_pylist() == [captions[0] for captions in SAID]
    assert mentioned(run) == [["dog", "grass"], ["cat"], ["dog", "ball"]]
    frequency = run["vocabulary"].read("concepts").select(["name", "frequency"]).to_pydict()
    assert dict(zip(*frequency.values(), strict=True)) == {"dog": 2, "cat": 1, "grass": 1, "ball": 1}
    assert run["corpus"].manifest.facts == {"captions": 5.0, "captions_left_out": 0.0}


def test_by_default_the_first_caption_is_all_that_is_used(
    sources: dict[str, Source], curate: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    run = curate(
        tmp_path / "store",
        CorpusConfig((sources["json"],)),
        tiny_encoder,
        until="mentions",
        vocabulary=GALLERY,
    )
    assert run["corpus"].parts("captions") == []
    assert mentioned(run) == [["dog"], ["cat"], ["dog", "ball"]]
    assert run["corpus"].manifest.facts == {}


def test_nouns_and_filters_go_on_with_all_captions(
    sources: dict[str, Source], curate: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    built = {"vocabulary": VocabularyConfig("captions"), "mentions": MentionsConfig("nouns")}
    corpus, select = CorpusConfig((sources["json"],), captions=ALL), SelectConfig(min_words=3)
    run = curate(tmp_path / "store", corpus, tiny_encoder, until="mentions", select=select, **built)
    assert run["select"].read("captions")["captions"].to_pylist() == [SAID[0], SAID[2]]
    assert run["nouns"].read("nouns")["nouns"].to_pylist() == [["dog", "animal", "grass"], ["dog", "ball"]]
    assert {tuple(sorted(names)) for names in mentioned(run)} == {("animal", "dog", "grass"), ("ball", "dog")}
