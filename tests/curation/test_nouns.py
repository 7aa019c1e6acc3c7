from importlib.resources import files

import pytest

from curation.captions import gallery_mentions, words
from curation.nouns import NounsConfig, noun_candidates, plural, surfaces
from storage.errors import ConfigError

GALLERY = files("curation").joinpath("gallery.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("puppy", "puppies"),
        ("toy", "toys"),
        ("man", "men"),
        ("fireman", "firemen"),
        ("groomsman", "groomsmen"),
        ("person", "people"),
        ("child", "children"),
        ("mouse", "mice"),
        ("ox", "oxen"),
        ("knife", "knives"),
        ("leaf", "leaves"),
        ("sheep", "sheep"),
        ("fish", "fish"),
        ("scissors", "scissors"),
        ("jeans", "jeans"),
        ("skis", "skis"),
        ("frisbee", "frisbees"),
        ("tv", "tvs"),
        ("half-pipe", "half-pipes"),
        ("dining table", "dining tables"),
        ("wine glass", "wine glasses"),
    ],
)
def test_plural_of_a_noun_is_the_usual_one(noun: str, expected: str) -> None:
    assert plural(noun) == expected


def test_surfaces_are_the_name_and_each_plural_once() -> None:
    assert surfaces("traffic light") == ("traffic light", "traffic lights")
    assert surfaces("scarf") == ("scarf", "scarves", "scarfs")
    assert surfaces("person") == ("person", "people", "persons")
    assert surfaces("sheep") == ("sheep",)


@pytest.mark.parametrize("name", GALLERY[::9])
def test_surfaces_of_the_gallery_are_what_captions_are_cut_into(name: str) -> None:
    for form in surfaces(" ".join(words(name))):
        assert gallery_mentions(words(f"look, {form}!"), {form: 1}) == [1]


def test_noun_candidates_are_nouns_and_compounds_in_the_singular() -> None:
    found = noun_candidates(
        [
            "Two dogs and a cat run in the grass .",
            "Men stand near traffic lights, buses and a swimming pool.",
            "VINTAGE LEATHER SOFAS FOR SALE!",
            "A woman's sunglasses and the children's mice",
        ]
    )
    assert found[0] == ["dog", "cat", "grass"]
    assert {"man", "traffic light", "light", "bus", "swimming pool", "pool"} <= set(found[1])
    assert "light bus" not in found[1]
    assert {"leather sofa", "sofa"} <= set(found[2])
    assert found[3] == ["woman", "sunglasses", "child", "mouse"]


def test_noun_candidates_of_captions_without_words_are_none() -> None:
    assert noun_candidates(["", "...", "in and out"]) == [[], [], []]
    assert noun_candidates([]) == []


def test_noun_candidates_have_a_surface_that_the_gallery_search_finds() -> None:
    caption = "A man's T-shirts, two bird feeders, people and the kitchen sink"
    for name in noun_candidates([caption])[0]:
        assert gallery_mentions(words(caption), dict.fromkeys(surfaces(name), 1)) == [1]


def test_noun_candidates_compounds_have_at_most_four_words() -> None:
    (found,) = noun_candidates(["the city water park swimming pool slide"])
    assert 1 < max(len(name.split()) for name in found) <= 4


def test_noun_candidates_of_one_word_are_no_compounds() -> None:
    assert noun_candidates(["two soccer players"], longest=1) == [["soccer", "player"]]


@pytest.mark.parametrize("longest", [0, 5])
def test_nouns_config_refuses_lengths_that_captions_are_not_searched_for(longest: int) -> None:
    with pytest.raises(ConfigError, match=f"nouns.longest is {longest}"):
        NounsConfig(longest)


def test_gallery_names_are_sorted_unique_words() -> None:
    assert sorted(set(GALLERY)) == GALLERY
    assert 2000 <= len(GALLERY) <= 2600
    assert all(1 <= len(words(name)) <= 4 for name in GALLERY)


VOC = """aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog,
horse, motorbike, person, potted plant, sheep, sofa, train, tv monitor"""
COCO = """airplane, traffic light, fire hydrant, stop sign, parking meter, bench, elephant, bear,
zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, ski, snowboard, sports ball,
kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
couch, bed, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"""
CITYSCAPES = """road, sidewalk, building, wall, fence, pole, traffic sign, vegetation, terrain, sky,
rider, truck, motorcycle"""
STUFF = """branch, bush, cardboard, carpet, ceiling, cloth, cloud, floor, flower, fog, food, fruit,
grass, gravel, ground, leaf, metal, moss, mountain, mud, net, pavement, playing field, railing,
rock, sand, sea, snow, stairs, stone, straw, textile, tree, vegetable, brick wall, water, waterdrop,
window blind, window, wood"""


@pytest.mark.parametrize("classes", [VOC, COCO, CITYSCAPES, STUFF])
def test_gallery_holds_the_classes_of_the_common_benchmarks(classes: str) -> None:
    names = {" ".join(name.split()) for name in classes.split(",")}
    assert not names - set(GALLERY)
