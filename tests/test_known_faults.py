"""What users of the tools before this one complain of, one test each, through the real stages.

One small corpus holds every oddity at once; the tests read what the stages made of it.
"""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import curation.embed
from curation.corpus import CorpusConfig
from curation.encoder import WEIGHTS, Encoder, load_encoder
from curation.index import ExpandConfig
from curation.sources import Source
from curation.vocabulary import VocabularyConfig
from storage.errors import InputError
from storage.tars import Sample, write_tar
from training.draws import draw

Pairs = list[tuple[str, bytes, str]]  # key, image, caption
NAMES = VocabularyConfig(names=("dog", "cat", "boat", "tree", "house", "car"))
COPIES = 9  # of one picture: more than L = 8
CATTLE = ("web/00000/cattle", "cattle scattered on the catwalk")
BREAKS = ("web/00000/breaks", "a dog\r\nand a\u2028boat\n")


def write_shard(folder: Path, shard: str, pairs: Pairs) -> None:
    folder.mkdir(exist_ok=True)
    samples = [Sample(key, {"jpg": image, "txt": caption.encode()}) for key, image, caption in pairs]
    with (folder / f"{shard}.tar").open("wb") as stream:
        write_tar(stream, samples)


def corpus_in(folder: Path) -> CorpusConfig:
    return CorpusConfig(sources=(Source("web", urls=(f"{folder}/*.tar",)),))


def black_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG")
    return stream.getvalue()


def blind_to_black(folder: str, device: str, precision: Any) -> Encoder:
    """The encoder, but of what has no light it gives the zero vector."""
    encoder = load_encoder(folder, device, precision)
    seen = encoder.encode_timed

    def encode_timed(image_NCHW: Tensor) -> tuple[NDArray[np.float32], float]:
        vectors_ND, seconds = seen(image_NCHW)
        dark_N = image_NCHW.flatten(1).std(dim=1).numpy() < 0.5
        return np.where(dark_N[:, None], np.float32(0), vectors_ND), seconds

    encoder.encode_timed = encode_timed  # type: ignore[method-assign]
    return encoder


@pytest.fixture(scope="module")
def odd(
    curate: Callable[..., Any],
    scene_jpegs: list[bytes],
    tiny_encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A run over two shards of the same keys, with everything in them that is said to go wrong."""
    folder, pictures = tmp_path_factory.mktemp("odd"), iter(scene_jpegs)
    copied = next(pictures)
    first = [(name.rsplit("/", 1)[1], next(pictures), caption) for name, caption in (CATTLE, BREAKS)]
    first += [(f"copy{n}", copied, "a tree" if n else "a cat") for n in range(COPIES)]
    second = [(key, next(pictures), "a house") for key in ("cattle", "breaks", "copy0")]
    second += [("black", black_jpeg(), "a car"), ("black2", black_jpeg(), "a boat")]
    write_shard(folder / "tars", "00000", first)
    write_shard(folder / "tars", "00001", second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curation.embed, "load_encoder", blind_to_black)
        return curate(folder / "store", corpus_in(folder / "tars"), tiny_encoder, vocabulary=NAMES)


def column(run: Any, label: str, table: str, name: str) -> dict[str, Any]:
    rows = run[label].read(table, columns=["sample_id", name]).to_pylist()
    return {row["sample_id"]: row[name] for row in rows}


def archives(run: Any) -> dict[str, list[dict[str, Any]]]:
    return column(run, "archive", "archives", "concepts")


def named_by(run: Any, sample_id: str) -> list[str]:
    names = run["vocabulary"].read("concepts")["name"].to_pylist()
    return [names[concept] for concept in column(run, "mentions", "mentions", "concept_ids")[sample_id]]


def test_cat_is_not_in_cattle_nor_car_in_scattered(odd: Any) -> None:
    sample_id, caption = CATTLE
    assert column(odd, "corpus", "samples", "caption")[sample_id] == caption
    assert named_by(odd, sample_id) == []
    donors = {donor for archive in archives(odd).values() for record in archive for donor in record["donors"]}
    assert sample_id not in donors


def test_newline_in_a_caption_is_a_blank_and_breaks_no_row_after_it(odd: Any, tmp_path: Path) -> None:
    captions = column(odd, "corpus", "samples", "caption")
    assert captions[BREAKS[0]] == "a dog and a boat"
    assert captions["web/00000/copy0"] == "a cat"
    assert sorted(named_by(odd, BREAKS[0])) == ["boat", "dog"]
    exported = odd["export"].file("web.00000.tar").read_bytes()
    assert b"a dog and a boat" in exported
    assert b"a dog\r\n" not in exported


def test_key_of_two_shards_is_two_samples_each_with_its_own_caption_vector_and_archive(odd: Any) -> None:
    ours, theirs = "web/00000/copy0", "web/00001/copy0"
    assert (named_by(odd, ours), named_by(odd, theirs)) == (["cat"], ["house"])
    vectors = column(odd, "embed", "embeddings", "vector")
    assert vectors[ours] == vectors["web/00000/copy1"] != vectors[theirs]
    neighbours = column(odd, "expand", "neighbours", "neighbour_ids")
    assert neighbours[theirs][0] == theirs
    assert len(archives(odd)) == len(vectors) == 2 + COPIES + 5


def test_copies_of_a_picture_have_one_archive_of_finite_scores(odd: Any) -> None:
    copies = [archives(odd)[f"web/00000/copy{n}"] for n in range(COPIES)]
    assert [record["name"] for record in copies[0]] != []
    assert all(copy == copies[0] for copy in copies)
    for record in copies[0]:
        if len(record["donors"]) == 8:  # all of them the same picture
            assert record["local_score"] == pytest.approx(1, abs=1e-6)


def test_zero_vector_gives_finite_scores_and_takes_no_part_in_others(odd: Any) -> None:
    dark = {"web/00001/black", "web/00001/black2"}
    vectors = column(odd, "embed", "embeddings", "vector")
    assert {name for name, vector in vectors.items() if not any(vector)} == dark
    for name, archive in archives(odd).items():
        numbers = [[r["score"], r["local_score"], r["global_score"], r["probability"]] for r in archive]
        assert np.isfinite(numbers).all()
        assert sum(record["probability"] for record in archive) == pytest.approx(1, abs=1e-5)
        assert name in dark or not any(dark & set(record["donors"]) for record in archive)
    assert odd["archive"].manifest.facts["clamped"] > 0


def test_archive_of_no_concept_is_empty_and_of_one_is_certain_and_both_can_be_drawn_from(
    odd: Any, curate: Any, tiny_encoder: Path
) -> None:
    store = odd.plan.store.url
    source = Path(store).parent / "tars"
    alone = curate(
        store, corpus_in(source), tiny_encoder, vocabulary=NAMES, expand=ExpandConfig(neighbours=1)
    )
    none, one = archives(alone)[CATTLE[0]], archives(alone)["web/00001/copy0"]
    assert none == []
    assert [(r["name"], r["cluster"], r["probability"]) for r in one] == [("house", 0, 1.0)]
    scores, clusters = np.array([one[0]["score"]]), np.array([one[0]["cluster"]])
    drawn = draw(["none", "one"], np.array([0, 0, 1]), scores, clusters, seed=0, epoch=0)
    assert drawn.tolist() == [[-1, -1, -1], [0, -1, -1]]


def test_corpus_smaller_than_the_neighbourhood_is_curated_with_the_images_there_are(
    curate: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    captions = ("a dog", "a tree", "a boat")
    pairs = [
        (str(n), image, caption)
        for n, (image, caption) in enumerate(zip(scene_jpegs, captions, strict=False))
    ]
    write_shard(tmp_path / "tars", "00000", pairs)
    run = curate(tmp_path / "store", corpus_in(tmp_path / "tars"), tiny_encoder, vocabulary=NAMES)
    everyone = {f"web/00000/{n}" for n in range(3)}
    assert [set(ids) for ids in column(run, "expand", "neighbours", "neighbour_ids").values()] == [
        everyone
    ] * 3
    assert [{r["name"] for r in archive} for archive in archives(run).values()] == [
        {"dog", "tree", "boat"}
    ] * 3


@pytest.mark.parametrize(
    ("tower", "told"),
    [
        ("visual", r"3 of 3 vectors with NaN or infinity on shard 'web/00000'.*checkpoint"),
        ("token_embedding", r"1 of 1 text vectors .* with NaN.*checkpoint"),  # the first text it is asked for
    ],
)
def test_nan_from_a_broken_checkpoint_is_refused_at_once_and_nothing_is_committed(
    tower: str,
    told: str,
    curate: Any,
    scene_jpegs: list[bytes],
    tiny_encoder: Path,
    tmp_path: Path,
) -> None:
    for shard in ("00000", "00001"):
        write_shard(tmp_path / "tars", shard, [(str(n), scene_jpegs[n], "a dog") for n in range(3)])
    shutil.copytree(tiny_encoder, tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / WEIGHTS)
    for name in tensors:
        if name.startswith(tower) and name.endswith("weight"):
            tensors[name].fill_(float("nan"))
    save_file(tensors, tmp_path / "broken" / WEIGHTS)
    with pytest.raises(InputError, match=told):
        curate(tmp_path / "store", corpus_in(tmp_path / "tars"), tmp_path / "broken", vocabulary=NAMES)
    assert not list((tmp_path / "store").glob("embed/*/manifest.json"))
