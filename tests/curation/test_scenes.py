import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from curation.scenes import (
    CONCEPTS,
    PLURALS,
    STUFF,
    THINGS,
    Scene,
    SceneConfig,
    encode_jpeg,
    encode_mask_png,
    render_scene,
)

CONFIG = SceneConfig()
NAMED_BY = {word: name for name in CONCEPTS for word in (name, PLURALS[name])}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(CONFIG, seed=11, index=index, captions="salient") for index in range(400)]


def named_in(caption: str) -> set[str]:
    return {NAMED_BY[word] for word in re.findall(r"[a-z]+", caption) if word in NAMED_BY}


def test_concepts_lists_are_distinct_words_of_both_kinds() -> None:
    assert len(set(CONCEPTS)) == len(CONCEPTS) >= 24
    assert len(STUFF) >= 9
    assert len(THINGS) >= 15
    assert all(re.fullmatch("[a-z]+", word) for word in NAMED_BY)


def test_plurals_cover_every_concept_and_name_only_one() -> None:
    assert set(PLURALS) == set(CONCEPTS)
    assert len(set(PLURALS.values())) == len(CONCEPTS)
    assert (PLURALS["bus"], PLURALS["person"], PLURALS["sheep"]) == ("buses", "people", "sheep")
    assert (PLURALS["dog"], PLURALS["sky"]) == ("dogs", "skies")
    assert all(NAMED_BY[PLURALS[name]] == name for name in CONCEPTS)


@pytest.mark.parametrize("captions", ["salient", "random"])
def test_render_scene_called_twice_gives_the_same_bytes(captions: str) -> None:
    first, second = (render_scene(CONFIG, 3, 5, captions) for _ in range(2))
    assert encode_jpeg(first.image_HWC) == encode_jpeg(second.image_HWC)
    assert encode_mask_png(first.mask_HW) == encode_mask_png(second.mask_HW)
    assert (first.caption, first.concepts) == (second.caption, second.concepts)


def test_render_scene_in_another_order_gives_the_same_scenes(scenes: list[Scene]) -> None:
    for index in (7, 2, 300):
        again = render_scene(CONFIG, seed=11, index=index, captions="salient")
        assert np.array_equal(again.image_HWC, scenes[index].image_HWC)
        assert again.caption == scenes[index].caption


def test_render_scene_with_other_captions_gives_the_same_picture(scenes: list[Scene]) -> None:
    other = render_scene(CONFIG, seed=11, index=4, captions="random")
    assert np.array_equal(other.image_HWC, scenes[4].image_HWC)
    assert np.array_equal(other.mask_HW, scenes[4].mask_HW)


def test_render_scene_with_other_seeds_and_indices_gives_disjoint_pictures() -> None:
    pictures = {
        render_scene(CONFIG, seed, index, "salient").image_HWC.tobytes()
        for seed in (0, 1, 10, 11)
        for index in (0, 1, 10, 11, 101)
    }
    assert len(pictures) == 20


@pytest.mark.parametrize(("size", "oversample"), [(16, 1), (48, 3), (64, 2), (96, 1)])
def test_render_scene_of_any_size_fills_picture_and_mask(size: int, oversample: int) -> None:
    for index in range(60):
        scene = render_scene(SceneConfig(size=size, oversample=oversample), 2, index, "random")
        assert scene.image_HWC.shape == (size, size, 3)
        assert scene.image_HWC.dtype == scene.mask_HW.dtype == np.uint8
        assert scene.mask_HW.shape == (size, size)
        assert scene.mask_HW.max() < len(CONCEPTS)


def test_render_scene_mask_agrees_with_the_concepts_listed(scenes: list[Scene]) -> None:
    for scene in scenes:
        names, pixels = np.unique(scene.mask_HW, return_counts=True)
        present = {
            CONCEPTS[k]: n for k, n in zip(names, pixels, strict=True) if n >= 0.01 * scene.mask_HW.size
        }
        assert set(scene.concepts) == set(present)
        areas = [present[name] for name in scene.concepts]
        assert areas == sorted(areas, reverse=True)


def test_render_scene_min_share_raised_drops_the_smaller_concepts(scenes: list[Scene]) -> None:
    config = dataclasses.replace(CONFIG, min_share=0.1)
    for index in range(30):
        fewer = render_scene(config, seed=11, index=index, captions="salient").concepts
        assert fewer == scenes[index].concepts[: len(fewer)]


def test_render_scene_regions_of_the_mask_differ_in_the_picture(scenes: list[Scene]) -> None:
    """Colours change more across the mask's borders than inside its regions: the mask lies on the picture."""
    across, inside = [], []
    for scene in scenes[:100]:
        step_HW = np.abs(np.diff(scene.image_HWC.astype(float), axis=1)).mean(axis=2)
        border_HW = np.diff(scene.mask_HW.astype(int), axis=1) != 0
        across.append(step_HW[border_HW].mean() if border_HW.any() else np.nan)
        inside.append(step_HW[~border_HW].mean())
    assert np.nanmean(across) > 2 * np.mean(inside)


def test_render_scene_over_some_hundreds_shows_every_concept(scenes: list[Scene]) -> None:
    shown = [name for scene in scenes for name in scene.concepts]
    assert set(shown) == set(CONCEPTS)
    assert min(shown.count(name) for name in CONCEPTS) >= 0.03 * len(scenes)
    assert 4.5 <= len(shown) / len(scenes) <= 5.7


def test_render_scene_things_keep_company_but_not_always(scenes: list[Scene]) -> None:
    at_sea = ["sea" in scene.concepts for scene in scenes if "boat" in scene.concepts]
    elsewhere = ["sea" in scene.concepts for scene in scenes if "boat" not in scene.concepts]
    assert np.mean(elsewhere) + 0.4 < np.mean(at_sea) < 1


def test_salient_captions_name_one_or_two_things_that_are_present(scenes: list[Scene]) -> None:
    for scene in scenes:
        named = named_in(scene.caption)
        assert named <= set(scene.concepts), scene.caption
        if set(scene.concepts) & set(THINGS):
            assert 1 <= len(named & set(THINGS)) <= 2, scene.caption


def test_salient_captions_recall_few_concepts_and_seldom_stuff(scenes: list[Scene]) -> None:
    recall = sum(len(named_in(scene.caption)) for scene in scenes) / sum(len(s.concepts) for s in scenes)
    with_stuff = np.mean([bool(named_in(scene.caption) & set(STUFF)) for scene in scenes])
    assert 0.25 <= recall <= 0.35
    assert 0.1 <= with_stuff <= 0.25


def test_salient_captions_prefer_the_larger_thing(scenes: list[Scene]) -> None:
    pairs = [[name for name in scene.concepts if name in THINGS] for scene in scenes]
    told = [(things, named_in(scene.caption)) for things, scene in zip(pairs, scenes, strict=True)]
    largest = np.mean([things[0] in named for things, named in told if len(things) > 2])
    smallest = np.mean([things[-1] in named for things, named in told if len(things) > 2])
    assert largest > 2 * smallest


def test_random_captions_name_half_to_all_of_what_is_present() -> None:
    recalls = []
    for index in range(200):
        scene = render_scene(CONFIG, seed=5, index=index, captions="random")
        named = named_in(scene.caption)
        assert named <= set(scene.concepts), scene.caption
        assert len(named) >= len(scene.concepts) / 2, scene.caption
        recalls.append(len(named) / len(scene.concepts))
    assert 0.65 < np.mean(recalls) < 0.9
    assert max(recalls) == 1


def test_captions_of_many_scenes_use_plurals_and_articles_as_english_does(scenes: list[Scene]) -> None:
    captions = [scene.caption for scene in scenes]
    assert len(set(captions)) > 0.7 * len(captions)
    assert any(re.search(r"\btwo (\w+)", caption) for caption in captions)
    for caption in captions:
        assert caption == caption.lower().strip()
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
        for counted in re.findall(r"\b(?:two|three|several|many) (\w+)", caption):
            assert counted in PLURALS.values(), caption


def test_encode_jpeg_decoded_stays_close_to_the_picture(scenes: list[Scene]) -> None:
    decoded = np.asarray(Image.open(io.BytesIO(encode_jpeg(scenes[0].image_HWC))).convert("RGB"), dtype=float)
    assert decoded.shape == scenes[0].image_HWC.shape
    assert np.abs(decoded - scenes[0].image_HWC).mean() < 8
    assert (
        np.abs(decoded - scenes[0].image_HWC).mean() < np.abs(decoded - scenes[0].image_HWC[..., ::-1]).mean()
    )


def test_encode_mask_png_decoded_is_the_mask(scenes: list[Scene]) -> None:
    decoded = Image.open(io.BytesIO(encode_mask_png(scenes[0].mask_HW)))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), scenes[0].mask_HW)


def test_render_scene_unknown_caption_style_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"captions='loud'.*salient.*random"):
        render_scene(CONFIG, 0, 0, "loud")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"size": 8}, {"oversample": 0}])
def test_scene_config_too_small_says_what_is_allowed(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 16 pixels and oversample at least 1"):
        SceneConfig(**wrong)
