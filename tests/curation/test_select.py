"""Filters: each with its reason, copies by bytes and by embedding, a pipeline that goes on with the rest."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.duplicates import DuplicatesConfig, near_pairs
from curation.ragged import ragged
from curation.select import SelectConfig, fault, letters
from storage.errors import ConfigError
from storage.reader import CorpusReader, image_bytes

ROW = {"width": 400, "height": 300, "caption": "a dog on the grass"}


def picture(seed: int, size: tuple[int, int] = (64, 64), quality: int = 90) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("config", "row", "reason"),
    [
        (SelectConfig(min_side=301), {}, "image_small"),
        (SelectConfig(min_side=300), {}, None),
        (SelectConfig(max_aspect=1.3), {}, "image_elongated"),
        (SelectConfig(max_aspect=1.3), {"width": 300, "height": 400}, "image_elongated"),
        (SelectConfig(max_aspect=1.34), {}, None),
        (SelectConfig(min_words=6), {}, "caption_short"),
        (SelectConfig(max_words=4), {}, "caption_long"),
        (SelectConfig(min_words=5, max_words=5), {}, None),
        (SelectConfig(min_letters=0.6), {"caption": "IMG_0123 (2).jpg"}, "caption_symbols"),
        (SelectConfig(min_letters=0.6), {"caption": "Собака на траве"}, None),
        (SelectConfig(min_letters=0.6), {"caption": "草地上的狗"}, None),
        (SelectConfig(max_repetition=0.4), {"caption": "sale sale sale dog"}, "caption_repeats"),
        (SelectConfig(max_repetition=0.4), {"caption": "so so"}, None),
        (SelectConfig(), {"caption": "?", "width": 16, "height": 9000}, None),
    ],
)
def test_each_filter_turns_away_by_its_own_reason(
    config: SelectConfig, row: dict[str, Any], reason: str | None
) -> None:
    found = fault({**ROW, **row}, config)
    assert (found[0] if found else None) == reason


def test_share_of_letters_counts_marks_and_leaves_blanks_out() -> None:
    assert letters("ab 12") == 0.5
    assert letters("e\u0301") == 1.0
    assert letters(" \n") == 0.0


def test_near_pairs_are_those_of_a_double_loop() -> None:
    rng = np.random.default_rng(3)
    base = rng.standard_normal((60, 16))
    copies = base[rng.integers(0, 60, 240)] + 0.05 * rng.standard_normal((240, 16))
    vectors = np.concatenate([base, copies])
    vectors_MD = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cells = ragged([np.arange(0, 300, 2), np.arange(1, 300, 2)], np.int64)
    later, earlier = near_pairs(vectors_MD, cells, 0.98)
    expected = {}
    for row in range(300):
        others = [j for j in range(row % 2, row, 2) if vectors_MD[row] @ vectors_MD[j] >= 0.98]
        if others:
            expected[row] = max(others, key=lambda j: vectors_MD[row] @ vectors_MD[j])
    assert 100 < len(expected) < 290
    assert dict(zip(later.tolist(), earlier.tolist(), strict=True)) == expected


def test_cell_wider_than_a_block_compares_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.duplicates.BLOCK", 3)
    vectors_MD = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1, 0, 3, 2]]
    later, earlier = near_pairs(vectors_MD, ragged([range(8)], np.int64), 0.9)
    assert later.tolist() == [4, 5, 6, 7]
    assert earlier.tolist() == [1, 0, 3, 2]


def test_orthogonal_and_opposed_images_are_no_copies() -> None:
    vectors_MD = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert near_pairs(vectors_MD, ragged([range(3)], np.int64), 0.5)[0].tolist() == []


def test_copies_go_with_a_reason_and_the_rest_is_curated(
    curate: Any, write_pairs: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    pairs = [(picture(n), "a dog on the grass") for n in range(12)]
    pairs += [(picture(3), "the same file"), (picture(4, quality=80), "the same picture")]
    pairs += [(picture(40, (400, 64)), "a banner on a road")]
    corpus = write_pairs(tmp_path / "tars", pairs)
    config = SelectConfig(max_aspect=3, duplicates=DuplicatesConfig(cosine=0.999))
    run = curate(tmp_path / "store", corpus, tiny_encoder, select=config)
    selected = run["select"]
    rows = {row["key"]: row["reason"] for row in selected.read("quarantine").to_pylist()}
    reasons = sorted(rows.values())
    assert reasons.count("duplicate_bytes") == 1
    assert "near_duplicate" in reasons
    assert reasons.count("image_elongated") == 1
    assert selected.manifest.counts.seen == 15
    kept = selected.read("samples")["sample_id"].to_pylist()
    assert selected.manifest.counts.kept == len(kept) == 15 - len(rows)
    assert selected.read("embeddings")["sample_id"].to_pylist() == kept
    assert run["archive"].read("archives")["sample_id"].to_pylist() == kept
    neighbours = run["expand"].read("neighbours")["neighbour_ids"].to_pylist()
    assert {name for found in neighbours for name in found} <= set(kept)
    reader = CorpusReader(selected, run.plan.locations)
    first = next(reader.members(reader.shards[0], ("jpg",)))
    assert image_bytes(first[1]) == picture(0)


def test_packed_corpus_is_read_through_the_selection(
    curate: Any, scene_corpus: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    run = curate(tmp_path / "store", scene_corpus, tiny_encoder, select=SelectConfig(min_words=3))
    selected, reader = run["select"], CorpusReader(run["select"], run.plan.locations)
    names = [name for shard in reader.shards for name, _ in reader.members(shard, ("jpg",))]
    assert names == selected.read("samples")["sample_id"].to_pylist()
    assert selected.read("truth").num_rows == len(names)
    assert run["export"].manifest.counts.kept == len(names)


def test_captions_unlike_their_image_go_by_cosine(
    curate: Any, scene_corpus: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    everything = curate(tmp_path / "store", scene_corpus, tiny_encoder, until="embed")["embed"]
    strict = SelectConfig(min_similarity=1.0)
    run = curate(tmp_path / "store", scene_corpus, tiny_encoder, until="select", select=strict)
    rows = run["select"].read("quarantine").to_pylist()
    assert {row["reason"] for row in rows} == {"caption_unlike_image"}
    assert len(rows) == len(everything.read("embeddings"))
    cosines = sorted(float(row["detail"].split()[1].rstrip(";")) for row in rows)
    middle = SelectConfig(min_similarity=max(0.0005, round(cosines[len(cosines) // 2], 3)))
    half = curate(tmp_path / "store", scene_corpus, tiny_encoder, until="select", select=middle)["select"]
    assert 0 < half.manifest.counts.kept < 90


@pytest.mark.parametrize(
    "setting", [{"min_letters": 2.0}, {"max_aspect": 0.5}, {"min_similarity": -0.1}, {"max_repetition": 1.5}]
)
def test_impossible_filters_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="lie in 0 \\(off\\) to 1"):
        SelectConfig(**setting)


@pytest.mark.parametrize("setting", [{"cosine": 1.5}, {"cell_size": 0}])
def test_impossible_duplicate_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="0 \\(off\\) to 1"):
        DuplicatesConfig(**setting)
