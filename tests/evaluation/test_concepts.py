import json
import math
import re
from pathlib import Path

import lemminflect
import pytest

from evaluation import classes
from evaluation.benchmarks import caption_truth
from evaluation.concepts import class_lookup, concept_metrics, plural

NAMES = ("person", "dog", "hot dog", "bus")
LOOKUP = class_lookup(NAMES, {"person": ("woman",)})

TRUTH = [{"person", "dog"}, {"bus"}, set()]
CAPTION = [{"women", "grass"}, {"street"}, {"dog"}]
RANKED = [["dogs", "woman", "bus", "tree"], ["road", "bus"], ["dog"]]


def test_class_lookup_knows_names_synonyms_and_plurals_exactly() -> None:
    assert LOOKUP["women"] == LOOKUP["people"] == "person"
    assert LOOKUP["hot dogs"] == "hot dog"
    assert LOOKUP["dogs"] == "dog"
    assert "doghouse" not in LOOKUP


def test_class_lookup_name_of_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="'dog' would name both 'dog' and 'wolf'"):
        class_lookup(("dog", "wolf"), {"wolf": ("dog",)})


@pytest.mark.parametrize(
    ("names", "synonyms"),
    [
        (classes.VOC, classes.VOC_SYNONYMS),
        (classes.COCO_OBJECT, classes.COCO_SYNONYMS),
        (classes.CITYSCAPES, None),
    ],
)
def test_class_lookup_tables_name_every_class_by_itself(
    names: tuple[str, ...], synonyms: dict[str, tuple[str, ...]] | None
) -> None:
    lookup = class_lookup(names, synonyms)
    assert all(lookup[name] == name for name in names)
    assert set(lookup.values()) == set(names)


def test_plural_single_words_agree_with_a_morphology_library() -> None:
    words = {
        word
        for names in (classes.VOC, classes.COCO_OBJECT, *classes.COCO_SYNONYMS.values())
        for word in names
        if word.isalpha()
    } | {"human", "tomato", "box", "church"}
    unclear = {
        "suv",
        "tv",
        "tvmonitor",
        "pottedplant",
        "diningtable",
        "skis",
        "scissors",
        "luggage",
        "ox",
        "person",
    }
    for word in sorted(words - unclear):
        assert plural(word) in lemminflect.getInflection(word, "NNS"), word


def test_concept_metrics_small_case_equals_the_count_by_hand() -> None:
    scores = concept_metrics(TRUTH, CAPTION, RANKED, LOOKUP, m=2)
    assert (scores.m, scores.images, scores.pairs) == (2, 2, 3)
    assert scores.pooled_caption_recall == pytest.approx(1 / 3)  # person
    assert scores.pooled_archive_recall == pytest.approx(3 / 3)
    assert scores.pooled_union_recall == pytest.approx(3 / 3)
    assert scores.archive_precision == pytest.approx(3 / 3)  # the road cannot be judged
    assert scores.caption_recall == pytest.approx((1 / 2 + 0) / 2)
    assert scores.archive_recall == scores.union_recall == 1


def test_concept_metrics_larger_m_takes_in_wrong_classes() -> None:
    few, many = (concept_metrics(TRUTH, CAPTION, RANKED, LOOKUP, m=m) for m in (1, 3))
    assert few.pooled_archive_recall == pytest.approx(1 / 3)
    assert few.pooled_union_recall == pytest.approx(2 / 3)
    assert few.whole_archive_recall == few.whole_union_recall == 1
    assert many.archive_precision == pytest.approx(3 / 4)


def test_concept_metrics_archives_that_name_no_class_have_no_precision() -> None:
    scores = concept_metrics([{"dog"}], [[]], [["grass"]], LOOKUP)
    assert scores.archive_recall == 0
    assert math.isnan(scores.archive_precision)


@pytest.mark.parametrize(("ranked", "m"), [(RANKED[:1], 5), (RANKED, 0)])
def test_concept_metrics_lists_that_do_not_pair_up_are_refused(ranked: list[list[str]], m: int) -> None:
    with pytest.raises(ValueError, match="one of each per picture"):
        concept_metrics(TRUTH, CAPTION, ranked, LOOKUP, m)


def test_concept_metrics_real_captions_name_more_with_synonyms(real_data: Path) -> None:
    truth = caption_truth(real_data / "coco").classes
    captions = json.loads((real_data / "coco/annotations/captions_val2017.json").read_text())
    said = [word_groups(captions[image][0]) for image in truth]
    nothing = [[] for _ in truth]
    plain, wide = (
        concept_metrics(list(truth.values()), said, nothing, class_lookup(classes.COCO_OBJECT, table))
        for table in (None, classes.COCO_SYNONYMS)
    )
    assert (plain.images, plain.pairs) == (94, 191)
    assert 0.3 < plain.pooled_caption_recall < 0.4
    assert 0.5 < wide.pooled_caption_recall < 0.65


def word_groups(caption: str) -> set[str]:
    words = re.findall(r"[a-z']+", caption.lower())
    return {" ".join(words[i : i + n]) for n in (1, 2) for i in range(len(words))}
