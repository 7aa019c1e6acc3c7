import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.captions import (
    CaptionLimits,
    Captions,
    gallery_mentions,
    mentions_of,
    read_captions,
    tokens,
    words,
)
from curation.images import Fault
from storage.errors import ConfigError


def read_caption(members: dict[str, bytes], limits: CaptionLimits | None = None) -> str | Fault:
    found = read_captions(members, limits)
    return found if isinstance(found, Fault) else found.texts[0]


def reason(members: dict[str, bytes], limits: CaptionLimits | None = None) -> str:
    caption = read_captions(members, limits)
    assert isinstance(caption, Fault)
    return caption.reason


def of_json(value: object) -> dict[str, bytes]:
    return {"json": json.dumps(value).encode()}


@pytest.mark.parametrize(
    ("members", "caption"),
    [
        ({"txt": b"a dog"}, "a dog"),
        ({"txt": b"a dog", "json": b'{"caption": "a cat"}'}, "a dog"),
        (of_json({"caption": "a cat"}), "a cat"),
        (of_json({"captions": ["a cat", "a dog"]}), "a cat"),
        (of_json({"caption": None, "captions": ["a cat"]}), "a cat"),
        ({"json": '\ufeff{"caption": "un café"}'.encode()}, "un café"),
    ],
)
def test_read_caption_from_txt_or_json_is_the_first_there(members: dict[str, bytes], caption: str) -> None:
    assert read_caption(members) == caption


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a dog\nin the\r\n\tsnow", "a dog in the snow"),
        ("  a\u2028dog\u00a0\u3000runs ", "a dog runs"),
        ("a\x00dog\x1b[0m\x85", "a dog [0m"),
        ("\ufeffa dog", "a dog"),
        ("a 🐕\u200d🦺 dog", "a 🐕\u200d🦺 dog"),
    ],
)
def test_read_caption_breaks_and_controls_become_single_blanks(raw: str, clean: str) -> None:
    assert read_caption({"txt": raw.encode()}) == clean
    assert read_caption(of_json({"caption": raw})) == clean


def test_read_caption_half_of_a_surrogate_pair_is_dropped_and_a_whole_one_kept() -> None:
    half, whole = b'{"caption": "a \\ud83d dog"}', b'{"caption": "a \\ud83d\\udc15"}'
    assert read_caption({"json": half}) == "a dog"
    assert read_caption({"json": whole}) == "a 🐕"


@pytest.mark.parametrize(
    "members", [{}, {"jpg": b"x"}, of_json({}), of_json({"captions": []}), of_json({"caption": None})]
)
def test_read_caption_that_is_not_there_is_missing(members: dict[str, bytes]) -> None:
    assert reason(members) == "caption_missing"


@pytest.mark.parametrize("raw", ["", " \n\t", "\x00\x00", "\u200a\u3000"])
def test_read_caption_without_a_visible_character_is_empty(raw: str) -> None:
    assert reason({"txt": raw.encode()}) == "caption_empty"
    assert reason(of_json({"captions": [raw, "a dog"]})) == "caption_empty"


def test_read_caption_empty_txt_does_not_fall_back_to_json() -> None:
    assert reason({"txt": b"", "json": b'{"caption": "a dog"}'}) == "caption_empty"


def test_read_caption_longer_than_the_limit_is_too_long() -> None:
    limits = CaptionLimits(max_bytes=10)
    assert read_caption({"txt": "é".encode() * 5}, limits) == "é" * 5
    assert reason({"txt": "é".encode() * 6}, limits) == "caption_too_long"
    assert reason(of_json({"caption": "é" * 6}), limits) == "caption_too_long"
    assert reason({"txt": b"a dog " * 17_000}) == "caption_too_long"
    assert reason({"json": b'{"captions": ["' + b"x" * 2**21 + b'"]}'}) == "caption_too_long"


ALL = CaptionLimits(max_bytes=20, use="all", most=3)


@pytest.mark.parametrize(
    ("members", "texts", "left_out"),
    [
        ({"txt": b"a dog"}, ["a dog"], 0),
        ({"txt": b"a dog\nin snow"}, ["a dog in snow"], 0),
        (of_json({"captions": ["a cat", "a\ndog", "a cat"]}), ["a cat", "a dog"], 0),
        (of_json({"caption": ["a cat", "a dog"]}), ["a cat", "a dog"], 0),
        ({"txt": b"a dog", **of_json({"captions": ["a dog", "a cow"]})}, ["a dog", "a cow"], 0),
        ({"1.txt": b"a cat", "0.txt": b"a dog", "txt": b"a cow"}, ["a cow", "a dog", "a cat"], 0),
        ({"2.txt": b"a cat"}, ["a cat"], 0),
        ({"txt": b"a dog", **of_json({"width": 3})}, ["a dog"], 0),
        ({"txt": b"a dog", "json": b"{"}, ["a dog"], 1),
        (of_json({"captions": ["a dog", "", 3, None, "x" * 21, "a cat"]}), ["a dog", "a cat"], 4),
        (of_json({"captions": ["a", "b", "c", "d", "e"]}), ["a", "b", "c"], 2),
        ({"txt": b"a dog", "0.txt": b"\xff"}, ["a dog"], 1),
    ],
)
def test_read_captions_all_of_them_are_clean_and_different_the_samples_own_first(
    members: dict[str, bytes], texts: list[str], left_out: int
) -> None:
    assert read_captions(members, ALL) == Captions(texts, left_out)
    assert read_captions(members) == Captions(texts[:1])  # by default the first is all


@pytest.mark.parametrize(
    "members", [{}, of_json({"captions": ["", "a dog"]}), {"txt": b"", "0.txt": b"a dog"}]
)
def test_read_captions_without_a_first_are_none_however_many_follow(members: dict[str, bytes]) -> None:
    assert isinstance(read_captions(members, ALL), Fault)


def test_read_captions_of_lines_are_one_each_and_measured_each() -> None:
    lines = CaptionLimits(max_bytes=8, use="all", lines=True)
    members = {"txt": b"a dog\r\n\n a cat \na large animal\n"}
    assert read_captions(members, lines) == Captions(["a dog", "a cat"], 1)
    assert read_captions(members, CaptionLimits(max_bytes=8, lines=True)) == Captions(["a dog"])
    assert reason({"txt": b"\n \n"}, lines) == "caption_empty"


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"most": 0}])
def test_caption_limits_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        CaptionLimits(**wrong)  # type: ignore[arg-type]


def test_mentions_of_several_captions_are_those_of_any() -> None:
    gallery = {"dog": 4, "dogs": 4, "cat": 1, "hot dog": 2}
    assert mentions_of(["a hot dog", "two dogs, a cat"], gallery) == [1, 2, 4]
    assert mentions_of(["a hot", "dog"], gallery) == [4]  # no form runs from one caption into the next
    assert mentions_of([], gallery) == []


@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff\xfea\x00", b"\xed\xa0\x80"])
def test_read_caption_in_another_encoding_is_not_utf8(data: bytes) -> None:
    assert reason({"txt": data}) == "caption_not_utf8"
    assert reason({"json": data}) == "caption_not_utf8"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'"a dog"', b"null", b'{"caption": 3}', b'{"captions": [{}]}', b'{"captions": {}}',
     b"[" * 100_000, b"9" * 5000],
)  # fmt: skip
def test_read_caption_json_that_holds_no_text_is_bad(data: bytes) -> None:
    assert reason({"json": data}) == "caption_bad_json"


@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
)
def test_read_caption_of_any_bytes_is_one_clean_line_or_a_fault(data: bytes) -> None:
    for members in ({"txt": data}, {"json": b'{"caption": ' + data + b"}"}, {"json": data}):
        caption = read_caption(members)
        if isinstance(caption, str):
            assert caption.encode("utf-8")
            assert caption.splitlines() == [caption]
            assert caption == " ".join(caption.split())


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog, running!", ["a", "dog", "running"]),
        ("Dog's half-pipe, isn't it?", ["dog", "'s", "half-pipe", "isn't", "it"]),
        ("a woman 's T-shirt", ["a", "woman", "'s", "t-shirt"]),
        ("a woman\u2019s T\u2011shirt", ["a", "woman", "'s", "t-shirt"]),
        ("the dogs' bowl -- 'quoted'", ["the", "dogs", "bowl", "quoted"]),
        ("snake_case #tag 3D 10x", ["snake", "case", "tag", "3d", "10x"]),
        ("\ufb01sh in a CAFE\u0301", ["fish", "in", "a", "caf\u00e9"]),
        ("東京タワー \uff21\uff22", ["東京タワー", "ab"]),
        ("", []),
        ("...!", []),
    ],
)
def test_words_of_a_caption_are_lower_case_without_punctuation(caption: str, expected: list[str]) -> None:
    assert words(caption) == expected


def test_tokens_keep_punctuation_between_the_words() -> None:
    assert tokens("A dog's bed, and (two) cats!") == [
        "a",
        "dog",
        "'s",
        "bed",
        ",",
        "and",
        "(",
        "two",
        ")",
        "cats",
        "!",
    ]


@given(st.text())
def test_tokens_without_punctuation_are_the_words(caption: str) -> None:
    marked = tokens(caption)
    assert [token for token in marked if any(c.isalnum() for c in token)] == words(caption)


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd", "Zs", "Po"], max_codepoint=0x24F)))
def test_words_joined_by_blanks_are_cut_the_same_again(caption: str) -> None:
    assert words(" ".join(words(caption))) == words(caption)


GALLERY = {
    "cat": 7,
    "cats": 7,
    "dog": 3,
    "hot dog": 5,
    "hot dog bun": 1,
    "double decker tour bus": 2,
    "bus": 9,
}


@pytest.mark.parametrize(
    ("caption", "concepts"),
    [
        ("cattle and a catalogue", []),
        ("concatenated", []),
        ("a cat and two cats", [7]),
        ("a hot dog bun", [1, 3, 5]),
        ("bus after double decker tour bus", [2, 9]),
        ("hot, tired dog", [3]),
        ("a CAT's dog", [3, 7]),
        ("", []),
    ],
)
def test_gallery_mentions_are_all_ngrams_that_are_members_exactly(caption: str, concepts: list[int]) -> None:
    assert gallery_mentions(words(caption), GALLERY) == concepts


def test_gallery_mentions_longest_bounds_the_ngrams() -> None:
    said = ["double", "decker", "tour", "bus"]
    assert gallery_mentions(said, GALLERY, longest=3) == [9]
    assert gallery_mentions(said, GALLERY, longest=1) == [9]
    assert gallery_mentions(said, {"double decker tour bus stop": 0}, longest=4) == []


@given(st.lists(st.sampled_from("abc"), max_size=9), st.integers(1, 5))
def test_gallery_mentions_agree_with_every_slice_looked_up(said: list[str], longest: int) -> None:
    gallery = {"a": 4, "b": 4, "a b": 2, "b a c": 9, "c c c c": 1, "a a a a a": 0}
    slices = {
        " ".join(said[start:end])
        for start in range(len(said))
        for end in range(start + 1, min(start + longest, len(said)) + 1)
    }
    expected = sorted({gallery[form] for form in slices if form in gallery})
    assert gallery_mentions(said, gallery, longest) == expected
