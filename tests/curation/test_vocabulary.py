"""Stages ``vocabulary`` and ``mentions``: which concepts there are, which captions name them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.encoder import load_encoder
from curation.visualness import VisualnessConfig
from curation.vocabulary import (
    BUILT_IN,
    VOCABULARY,
    MentionsConfig,
    VocabularyConfig,
    gallery_names,
    surface_index,
    vocabulary_identity,
)
from storage.errors import ConfigError, InputError
from storage.files import Folder

CAPTIONS = [
    "Two dogs and a Dog's ball",
    "a hot dog on the grass",
    "cattle, no other animal",
    "wine glasses beside a\nwine glass",
    "hotdogs; DOG!",
    "",
]


@pytest.fixture
def named(curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path) -> Any:
    """Runs vocabulary and mentions over the captions above."""
    corpus = write_pairs(tmp_path / "tars", list(zip(scene_jpegs, CAPTIONS, strict=False)), 2)

    def run(mentions: MentionsConfig | None = None, **vocabulary: Any) -> dict[str, Any]:
        config = VocabularyConfig(**vocabulary)
        done = curate(
            tmp_path / "store", corpus, tiny_encoder, until="mentions", vocabulary=config,
            mentions=mentions or MentionsConfig(),
        )  # fmt: skip
        concepts = done["vocabulary"].read("concepts").to_pydict()
        table = done["mentions"].read("mentions").to_pydict()
        said = [[concepts["name"][c] for c in ids] for ids in table["concept_ids"]]
        return {
            "concepts": concepts,
            "frequency": dict(zip(concepts["name"], concepts["frequency"], strict=True)),
            "said": dict(zip(table["sample_id"], said, strict=True)),
            "facts": done["mentions"].manifest.facts,
            "candidates": done["vocabulary"].read("candidates").to_pylist(),
            "done": done,
        }

    return run


def test_frequency_counts_captions_that_name_a_concept_once_each(named: Any) -> None:
    found = named(names=("cat", "dog", "hot dog", "wine glass", "glass", "ball", "grass"))
    assert found["frequency"] == {
        "dog": 3, "hot dog": 1, "wine glass": 1, "glass": 1, "ball": 1, "grass": 1,
    }  # fmt: skip


def test_mentions_are_exact_words_with_plurals_by_sample_id(named: Any) -> None:
    found = named(names=("cat", "dog", "hot dog", "wine glass", "glass", "ball", "grass"))
    assert found["said"] == {
        "web/00000/0000": ["dog", "ball"],
        "web/00000/0001": ["dog", "hot dog", "grass"],
        "web/00001/0002": [],
        "web/00001/0003": ["wine glass", "glass"],
        "web/00002/0004": ["dog"],
    }  # the caption without a character was turned away by the corpus stage
    assert found["facts"] == {"mentions": 8.0, "captions_naming_none": 1.0}


def test_concepts_named_too_seldom_are_left_out(named: Any) -> None:
    found = named(names=("dog", "ball", "grass"), min_frequency=2)
    assert found["frequency"] == {"dog": 3}
    assert found["concepts"]["concept_id"] == [0]


def test_text_vectors_are_unit_means_over_the_templates(named: Any, tiny_encoder: Path) -> None:
    templates = ("a photo of a {}.", "the {}")
    found = named(names=("dog", "ball"), templates=templates)
    encoder = load_encoder(tiny_encoder, "cpu")
    for name, vector in zip(found["concepts"]["name"], found["concepts"]["vector"], strict=True):
        each = np.stack([encoder.encode_texts([template.format(name)], ("{}",))[0] for template in templates])
        mean_D = each.mean(axis=0)
        np.testing.assert_allclose(vector, mean_D / np.linalg.norm(mean_D), atol=1e-6)


def test_vocabulary_from_the_captions_themselves_is_their_nouns_most_frequent_first(named: Any) -> None:
    found = named(source="captions", mentions=MentionsConfig(extractor="nouns"))
    assert next(iter(found["frequency"])) == "dog"
    assert {"ball", "grass", "wine glass"} <= set(found["frequency"])
    assert set(found["concepts"]["source"]) == {"captions"}
    assert "dog" in found["said"]["web/00000/0000"]


def _reasons(found: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in found["candidates"]}


def test_candidates_tell_why_each_name_is_in_the_vocabulary_or_not(named: Any) -> None:
    found = named(names=("cat", "dog", "ball", "grass"), max_share=0.5, always=("Wine  Glass", "submarine"))
    assert _reasons(found) == {
        "cat": "too_rare", "dog": "too_common", "ball": "kept", "grass": "kept",
        "wine glass": "added", "submarine": "added",
    }  # fmt: skip
    assert found["frequency"] == {"ball": 1, "grass": 1, "wine glass": 1, "submarine": 0}
    assert found["candidates"][4]["surfaces"] == ["wine glass", "wine glasses"]
    assert found["candidates"][4]["visualness"] is None
    facts = found["done"]["vocabulary"].manifest.facts
    assert facts == {
        "concepts": 4.0, "candidates_kept": 2.0, "candidates_added": 2.0,
        "candidates_too_rare": 1.0, "candidates_too_common": 1.0,
    }  # fmt: skip


def test_nouns_of_the_corpus_are_pruned_and_added_to_like_a_gallery(named: Any) -> None:
    found = named(source="captions", min_frequency=2, always=("grass", "zebra"))
    assert list(found["frequency"].items()) == [("dog", 3), ("grass", 1), ("zebra", 0)]
    assert _reasons(found)["ball"] == "too_rare"
    assert sum(reason == "added" for reason in _reasons(found).values()) == 2


def test_vocabulary_reads_nouns_and_embeddings_only_when_it_needs_them(named: Any) -> None:
    def reads(label: str, **settings: Any) -> set[str]:
        nodes = named(names=("dog", "ball"), **settings)["done"].plan.nodes
        return set(next(node.inputs for node in nodes if node.label == label))

    assert reads("vocabulary") == {"corpus", "encoder", "gallery"}
    assert reads("vocabulary", visualness=VisualnessConfig()) == {
        "corpus", "encoder", "gallery", "embeddings",
    }  # fmt: skip
    assert reads("mentions", mentions=MentionsConfig("nouns")) == {"corpus", "vocabulary", "nouns"}


def test_concepts_that_the_encoder_surely_does_not_see_are_left_out(named: Any) -> None:
    """With five images nothing is sure at 98 %, and much at 1 %."""
    names = ("dog", "ball", "grass", "glass")
    sure = named(names=names, visualness=VisualnessConfig(minimum=0.99, confidence=0.01), always=("glass",))
    measured = {row["name"]: row for row in sure["candidates"]}
    assert {row["reason"] for row in measured.values()} == {"not_visual", "added"} | {
        "kept" for row in measured.values() if row["visualness_high"] >= 0.99
    }
    for name, row in measured.items():
        assert 0 <= row["visualness_low"] <= row["visualness"] <= row["visualness_high"] <= 1
        assert (row["reason"] == "not_visual") == (row["visualness_high"] < 0.99 and name != "glass")
    unsure = named(names=names, visualness=VisualnessConfig(minimum=0.3))
    assert set(_reasons(unsure).values()) == {"kept"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"min_frequency": -1}, "min_frequency=-1"),
        ({"max_share": 0.0}, "max_share=0.0"),
        ({"max_share": 1.5}, "max_share=1.5"),
        ({"source": "captions", "names": ("dog",)}, "takes the nouns of the corpus and no gallery"),
        ({"source": "captions", "gallery": "scenes"}, "takes the nouns of the corpus and no gallery"),
        ({"always": ("dog", "…")}, "a name without a word"),
    ],
)
def test_vocabulary_settings_that_contradict_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        VocabularyConfig(**wrong)


def test_vocabulary_from_which_everything_is_pruned_says_what_by(named: Any) -> None:
    with pytest.raises(InputError, match="1 too_common, 1 too_rare"):
        named(names=("dog", "submarine"), max_share=0.1)


def test_vocabulary_that_no_caption_names_says_what_to_check(named: Any) -> None:
    with pytest.raises(InputError, match="no caption of the corpus names a concept"):
        named(names=("submarine",))


def test_gallery_from_a_file_takes_names_before_the_tab_once_each(tmp_path: Path) -> None:
    gallery = tmp_path / "gallery.txt"
    gallery.write_text("Dog\t120\n\ndog\nTraffic  Light\t7\n", "utf-8")
    assert gallery_names(VocabularyConfig(gallery=str(gallery))) == ["dog", "traffic light"]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"\n\t3\n"])
def test_gallery_that_cannot_be_used_is_named(content: bytes | None, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery.txt"
    if content is not None:
        gallery.write_bytes(content)
    with pytest.raises(ConfigError, match="gallery"):
        gallery_names(VocabularyConfig(gallery=str(gallery)))


def test_built_in_gallery_has_common_things_and_no_repetition() -> None:
    names = gallery_names(VocabularyConfig(gallery=BUILT_IN))
    assert len(names) == len(set(names)) > 1000
    assert {"dog", "person", "sky", "grass", "bicycle", "traffic light"} <= set(names)


def test_gallery_is_identified_by_its_names_not_its_place(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for name, text in [("a", "dog\ncat\n"), ("b", "Dog\t4\ncat\t2\n"), ("c", "cat\ndog\n")]:
        (tmp_path / name).write_text(text)
    one, other, swapped = (
        VOCABULARY.outside(VocabularyConfig(gallery=str(tmp_path / name)), folder) for name in "abc"
    )
    assert one == other != swapped
    assert vocabulary_identity(VocabularyConfig(source="captions"), folder) == {}


def test_surface_form_of_two_concepts_belongs_to_the_one_that_is_called_so() -> None:
    index = surface_index(["glass", "glasses", "dog"])
    assert (index["glass"], index["glasses"], index["dogs"]) == (0, 1, 2)
