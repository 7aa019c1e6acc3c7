"""The order of an epoch, the batches of the loader, and the crops: all of them functions of seed and id."""

import io
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage.errors import ConfigError, InputError
from storage.reader import CorpusReader, image_bytes
from training.data import Batch, CropConfig, decode_image, random_crop, to_tensor
from training.loader import Loader
from training.nouns import DrawConfig, NounSource
from training.order import Reference, batches_per_epoch, epoch_pools, rank_part, resume_at
from training.views import RandomCrops

SIZES = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 30), min_size=1, max_size=8)
SHAPES = {"sizes": SIZES, "batch_size": st.integers(1, 12), "open_shards": st.integers(1, 4)}


def batches_of(
    sizes: dict[str, int], epoch: int = 0, seed: int = 0, **shape: int
) -> list[tuple[Reference, ...]]:
    pools = epoch_pools(sizes, seed=seed, epoch=epoch, **shape)
    return [batch for pool in pools for batch in pool.batches]


@given(**SHAPES)
@settings(deadline=None)
def test_epoch_visits_each_sample_once_but_for_the_last_incomplete_batch(
    sizes: dict[str, int], batch_size: int, open_shards: int
) -> None:
    batches = batches_of(sizes, batch_size=batch_size, open_shards=open_shards)
    everything = {(shard, row) for shard, size in sizes.items() for row in range(size)}
    visited = Counter(reference for batch in batches for reference in batch)
    assert len(batches) == batches_per_epoch(sizes, batch_size) == len(everything) // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    assert set(visited.values()) <= {1}
    assert set(visited) <= everything
    assert len(everything) - len(visited) < batch_size


@given(**SHAPES, step=st.integers(0, 40))
@settings(deadline=None)
def test_epoch_resumed_at_any_step_has_the_same_batches_left(
    sizes: dict[str, int], batch_size: int, open_shards: int, step: int
) -> None:
    shape = {"batch_size": batch_size, "open_shards": open_shards}
    left = list(resume_at(epoch_pools(sizes, seed=0, epoch=0, **shape), step))
    assert [batch for pool in left for batch in pool.batches] == batches_of(sizes, **shape)[step:]
    for pool in left:
        assert set(pool.shards) == {shard for batch in pool.batches for shard, _ in batch}


@given(open_shards=st.integers(1, 5), batch_size=st.integers(1, 20), shards=st.integers(1, 30))
@settings(deadline=None)
def test_epoch_holds_few_shards_at_a_time(open_shards: int, batch_size: int, shards: int) -> None:
    sizes = {f"{n:03d}": 20 for n in range(shards)}
    pools = list(epoch_pools(sizes, seed=1, epoch=0, batch_size=batch_size, open_shards=open_shards))
    assert max((len(pool.shards) for pool in pools), default=0) <= 2 * open_shards


def test_order_depends_on_seed_and_epoch_and_not_on_the_listing() -> None:
    sizes, shape = {"a": 20, "b": 15, "c": 30}, {"batch_size": 5, "open_shards": 2}
    first = batches_of(sizes, **shape)
    assert batches_of(dict(reversed(sizes.items())), **shape) == first
    assert batches_of(sizes, epoch=1, **shape) != first != batches_of(sizes, seed=1, **shape)


def loader(run: Any, **changes: Any) -> Loader:
    corpus, vocabulary = run["corpus"], run["vocabulary"]
    whole = Loader(
        reader=CorpusReader(corpus),
        drawn=NounSource("archive", corpus, vocabulary, run["archive"]),
        fixed=NounSource("caption", corpus, vocabulary, run["mentions"]),
        draws=DrawConfig(),
        shards=tuple(corpus.shards),
        batch_size=16,
        open_shards=2,
        epochs=3,
        seed=5,
        view=RandomCrops(24, seed=5),
    )
    return replace(whole, **changes)


def by_sample(batches: Iterator[Batch]) -> dict[tuple[int, str], tuple[Any, ...]]:
    """What a sample came with, by epoch and id."""
    return {
        (batch.epoch, name): (
            batch.captions[n], batch.drawn_NM[n].tolist(), batch.fixed[n].tolist(), batch.named[n].tolist(),
            batch.pixels_NHWC[n].tobytes(),
        )
        for batch in batches
        for n, name in enumerate(batch.sample_ids)
    }  # fmt: skip


def test_loader_gives_each_id_once_an_epoch_but_for_the_last_incomplete_batch(curated: Any) -> None:
    samples = loader(curated)
    every = set(curated["corpus"].read("samples")["sample_id"].to_pylist())
    assert (samples.steps_per_epoch, samples.steps) == (5, 15)
    seen = [
        [name for b in samples.batches(0) if b.epoch == epoch for name in b.sample_ids] for epoch in range(3)
    ]
    for names in seen:
        assert len(names) == len(set(names)) == 80
        assert set(names) <= every
    assert seen[0] != seen[1] != seen[2]
    assert set().union(*seen) == every  # it is not always the same ones that are left out


def test_loader_resumed_at_any_step_gives_the_same_batches(curated: Any) -> None:
    samples = loader(curated)
    whole = [by_sample(iter([batch])) for batch in samples.batches(0)]
    for step in (0, 1, 4, 5, 7, 14, 15):
        assert [by_sample(iter([batch])) for batch in samples.batches(step)] == whole[step:]


def test_loader_joins_bytes_captions_and_nouns_by_id(curated: Any) -> None:
    corpus, reader = curated["corpus"], CorpusReader(curated["corpus"])
    captions = dict(reader.samples("scenes/00001").select("sample_id", "caption").iter_rows())
    images = {name: image_bytes(sample) for name, sample in reader.members("scenes/00001", ("jpg",))}
    archives = dict(zip(*curated["archive"].read("archives").to_pydict().values(), strict=True))
    mentions = dict(zip(*curated["mentions"].read("mentions").to_pydict().values(), strict=True))
    assert len(corpus.shards) == 3
    view = RandomCrops(24, seed=5)
    for (epoch, name), (caption, drawn, fixed, named, pixels) in by_sample(
        loader(curated).batches(0)
    ).items():
        assert fixed == mentions[name]
        listed = [record["concept_id"] for record in archives[name]]
        assert set(drawn) - {-1} <= set(listed)
        assert len(set(drawn)) == min(3, len(listed))
        assert named == sorted({*listed, *fixed})
        if name in captions:
            assert (caption, pixels) == (captions[name], view(images[name], name, epoch).tobytes())


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 7},
        {"open_shards": 1},
        {"shards": ("scenes/00002", "scenes/00000")},
        {"threads": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nouns_of_a_sample_depend_on_seed_id_and_epoch_only(changes: dict[str, Any], curated: Any) -> None:
    one, other = by_sample(loader(curated).batches(0)), by_sample(loader(curated, **changes).batches(0))
    shared = one.keys() & other.keys()
    assert len(shared) > 100
    assert all(one[key][1:4] == other[key][1:4] for key in shared)
    reseeded = by_sample(loader(curated, seed=6).batches(0))
    assert any(one[key][1] != reseeded[key][1] for key in one.keys() & reseeded.keys())


def test_loader_reads_shards_when_they_are_due_and_only_those(curated: Any) -> None:
    class Counting(CorpusReader):
        def samples(self, shard: str) -> Any:
            read.append(shard)
            return super().samples(shard)

    read: list[str] = []
    counting = Counting(curated["corpus"])
    samples = loader(curated, reader=counting, batch_size=3, open_shards=1, epochs=1, view=None)
    batches = samples.batches(0)
    next(batches)
    assert len(read) <= 2  # of three: the first, and the one that is read ahead
    list(batches)
    assert sorted(set(read)) == list(samples.shards)
    read.clear()
    assert len(list(samples.batches(samples.steps - 1))) == 1
    assert len(read) <= 2


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ids_over_ranks_threads_and_epochs_are_complete_and_no_id_comes_twice(
    world: int, threads: int, curated: Any
) -> None:
    ranks = [loader(curated, rank=rank, world=world, threads=threads) for rank in range(world)]
    seen = Counter(
        (batch.epoch, name) for samples in ranks for batch in samples.batches(0) for name in batch.sample_ids
    )
    alone = Counter((batch.epoch, name) for batch in loader(curated).batches(0) for name in batch.sample_ids)
    assert seen == alone
    assert set(seen.values()) == {1}
    every = curated["corpus"].read("samples").num_rows
    left_out = [every - sum(epoch == e for epoch, _ in seen) for e in range(3)]
    assert left_out == [every % 16] * 3  # the incomplete batch at the end


@given(count=st.integers(1, 9), world=st.integers(1, 5))
def test_parts_of_the_ranks_make_up_the_batch_in_order(count: int, world: int) -> None:
    batch = [("a", row) for row in range(count * world)]
    parts = [rank_part(batch, rank, world) for rank in range(world)]
    assert [reference for part in parts for reference in part] == batch
    assert {len(part) for part in parts} == {count}


def test_ranks_have_the_parts_of_the_batches_that_one_process_has(curated: Any) -> None:
    whole = list(loader(curated).batches(3))
    pairs = zip(*(loader(curated, rank=rank, world=2, threads=2).batches(3) for rank in (0, 1)), strict=True)
    for batch, halves in zip(whole, pairs, strict=True):
        assert [name for half in halves for name in half.sample_ids] == batch.sample_ids
        for array in ("drawn_NM", "pixels_NHWC"):
            together = np.concatenate([getattr(half, array) for half in halves])
            np.testing.assert_array_equal(together, getattr(batch, array))


def test_batch_that_cannot_be_shared_out_evenly_is_refused(curated: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size 16 cannot be shared out evenly among 3 processes"):
        loader(curated, world=3)


def test_loader_that_is_left_leaves_no_thread(curated: Any) -> None:
    before = threading.active_count()
    batches = loader(curated, threads=3).batches(0)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_loader_of_fewer_samples_than_a_batch_says_so(curated: Any) -> None:
    with pytest.raises(InputError, match="90 training samples make no batch of 100; lower batch_size"):
        loader(curated, batch_size=100).steps_per_epoch  # noqa: B018 - a property that raises


def gradient(height: int = 40, width: int = 60) -> Any:
    rows_HW, columns_HW = np.mgrid[:height, :width]
    return np.stack([rows_HW * 4, columns_HW * 4, rows_HW + columns_HW], axis=2).astype(np.uint8)


def test_crop_depends_on_seed_id_and_epoch_only() -> None:
    image_HWC, config = gradient(), CropConfig()
    crops = [
        random_crop(image_HWC, 32, config, name, seed=seed, epoch=epoch)
        for name, seed, epoch in [("a", 0, 0), ("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1)]
    ]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert all((crops[0] != other).any() for other in crops[2:])
    assert {crop.shape for crop in crops} == {(32, 32, 3)}


def test_crops_are_as_large_and_as_often_mirrored_as_configured() -> None:
    image_HWC, config, mirrored, shares = gradient(), CropConfig(smallest=0.5), 0, []
    for n in range(300):
        crop = random_crop(image_HWC, 24, config, str(n), seed=0, epoch=0).astype(int)
        mirrored += int(crop[:, 0, 1].mean() > crop[:, -1, 1].mean())
        spans = np.ptp(crop[..., 0]) / 156, np.ptp(crop[..., 1]) / 236
        shares.append(spans[0] * spans[1])
    assert 120 < mirrored < 180
    assert min(shares) > 0.4
    assert max(shares) > 0.85


def test_crop_of_a_sliver_is_made_all_the_same() -> None:
    assert random_crop(gradient(1, 50), 16, CropConfig(), "a", seed=0, epoch=0).shape == (16, 16, 3)


def test_decoded_image_is_rgb_and_becomes_a_tensor_between_0_and_1() -> None:
    stream = io.BytesIO()
    Image.fromarray(gradient()).save(stream, "PNG")
    image_HWC = decode_image(stream.getvalue())
    np.testing.assert_array_equal(image_HWC, gradient())
    tensor_NCHW = to_tensor([image_HWC, image_HWC])
    assert tensor_NCHW.shape == (2, 3, 40, 60)
    np.testing.assert_allclose(tensor_NCHW[1].permute(1, 2, 0).numpy() * 255, gradient(), atol=1e-4)


def test_image_that_cannot_be_decoded_says_what_to_do() -> None:
    with pytest.raises(InputError, match="run the corpus stage again"):
        decode_image(b"not an image")
